//! A chat template: Jinja as `transformers` runs it.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value, context};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::python::{Date, tojson};

const NAME: &str = "chat";

pub(super) struct Template {
    environment: Environment<'static>,
    source: String,
    bos: String,
    eos: String,
}

/// What to render. The default is a bare list of no messages.
#[derive(Default)]
pub(super) struct Conversation {
    pub messages: Vec<Value>,
    pub tools: Option<Value>,
    /// Whether to end with the opening of an assistant's message.
    pub generate: bool,
    /// Passed as `enable_thinking` if given.
    pub thinking: Option<bool>,
}

impl Template {
    pub(super) fn new(source: &str, bos: &str, eos: &str) -> Result<Self, Error> {
        let source = without_generation_tags(source);
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()?;
        environment.set_syntax(syntax);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_filter("tojson", tojson);
        environment.add_function("raise_exception", |message: String| -> Result<(), Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        // To Jinja nothing is not iterable; without this, absent tools are a list.
        environment.add_test("iterable", |value: &Value| {
            !value.is_none() && !value.is_undefined() && value.try_iter().is_ok()
        });
        // One day for as long as the format lives: a head that changed at midnight would cost
        // every conversation its cache.
        let days = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |time| time.as_secs() / 86_400);
        let today = Date::from_unix_days(days.cast_signed());
        environment.add_function("strftime_now", move |format: &str| today.strftime(format));
        environment.add_template_owned(NAME, source.clone())?;
        Ok(Self {
            environment,
            source,
            bos: bos.to_owned(),
            eos: eos.to_owned(),
        })
    }

    pub(super) fn source(&self) -> &str {
        &self.source
    }

    pub(super) fn eos(&self) -> &str {
        &self.eos
    }

    pub(super) fn render(&self, conversation: Conversation) -> Result<String, Error> {
        let context = context! {
            messages => conversation.messages,
            tools => conversation.tools,
            documents => (),
            add_generation_prompt => conversation.generate,
            bos_token => &*self.bos,
            eos_token => &*self.eos,
            // Llama 3.1 would else write the tools into the first user message, where they
            // would not belong to the head.
            tools_in_user_message => false,
        };
        let context = match conversation.thinking {
            Some(thinking) => context! { enable_thinking => thinking, ..context },
            None => context,
        };
        self.environment.get_template(NAME)?.render(context)
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Template({} bytes)", self.source.len())
    }
}

/// `{% generation %}` blocks tell a trainer which text to learn from; they render nothing.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else {
            break;
        };
        let inner = &rest[start + 2..start + length];
        out.push_str(&rest[..start + 2]);
        match inner.trim_matches(['-', '+', ' ']) {
            // Another tag in its place keeps what the tag does to the white space around it.
            word @ ("generation" | "endgeneration") => {
                out.push_str(&inner.replace(word, "set generation = none"));
            }
            _ => out.push_str(inner),
        }
        out.push_str("%}");
        rest = &rest[start + length + 2..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> String {
        let messages = vec![context! { role => "user", content => " hi " }];
        Template::new(source, "<s>", "</s>")
            .unwrap()
            .render(Conversation {
                messages,
                ..Conversation::default()
            })
            .unwrap()
    }

    #[test]
    fn it_runs_what_python_runs() {
        let source = "{{ bos_token }}\n{% for m in messages %}\n    {% generation %}\n{{ m['content'].strip() + m.role.upper() }}\n    {%- endgeneration -%}\n\n{% endfor %}\n{{ eos_token }}";
        assert_eq!(render(source), "<s>\nhiUSER</s>");
        assert!(render("{{ strftime_now('%Y') }}").parse::<u32>().unwrap() > 2000);
        assert_eq!(
            render("{{ tools is none }} {{ tools is iterable }} {{ 'a' is iterable }}"),
            "True False True"
        );
    }

    #[test]
    fn a_template_can_refuse() {
        let template = Template::new("{{ raise_exception('No.') }}", "", "").unwrap();
        let error = template.render(Conversation::default()).unwrap_err();
        assert_eq!(error.detail(), Some("No."));
    }
}
