//! Grammars that clients send for the input of their custom tools, made safe to compile.
//!
//! A grammar in Lark is compiled as one of its own that ours refers to, so no bracket too many
//! can reach out of it. A regular expression becomes a terminal of ours.

/// Bytes of a definition. Ten times the largest in use.
const BYTES: usize = 64 * 1024;
/// Rules and terminals. A compiler goes down from one to the next by recursion; of brackets it
/// takes only few.
const DEFINITIONS: usize = 1_000;

/// Refuses a grammar in Lark that is too large to compile, or that reaches for more than text:
/// for tokens that steer a model, or for schemas, which have limits of their own. Everything else
/// is the compiler's to refuse. Errors are for the client.
pub(super) fn check_lark(definition: &str) -> Result<(), String> {
    check_size(definition)?;
    let bare = without_literals(definition);
    for (line, text) in (1..).zip(bare.lines()) {
        for (sign, problem) in [
            ("<", "special tokens such as <name> cannot be used"),
            ("@", "there are no other grammars to refer to"),
            ("%json", "%json cannot be used; a function takes a schema"),
        ] {
            if text.contains(sign) {
                return Err(format!("line {line}: {problem}"));
            }
        }
    }
    if bare.matches(':').count() > DEFINITIONS {
        return Err(format!(
            "it has more than {DEFINITIONS} rules and terminals"
        ));
    }
    Ok(())
}

/// A regular expression as a terminal in Lark. It always matches all of an input, so anchors
/// around it say nothing more.
pub(super) fn terminal(regex: &str) -> Result<String, String> {
    check_size(regex)?;
    let regex = regex.strip_prefix('^').unwrap_or(regex);
    let mut terminal = String::from("/");
    let mut chars = regex.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                terminal.push(c);
                terminal.extend(chars.next());
            }
            '$' if chars.peek().is_none() => {}
            '/' => terminal.push_str(r"\/"),
            '\n' => terminal.push_str(r"\n"),
            '\r' => terminal.push_str(r"\r"),
            c => terminal.push(c),
        }
    }
    if terminal.len() == 1 {
        return Err("it is empty".to_owned());
    }
    terminal.push('/');
    Ok(terminal)
}

fn check_size(definition: &str) -> Result<(), String> {
    match definition.len() {
        0..=BYTES => Ok(()),
        _ => Err(format!("it has more than {BYTES} bytes")),
    }
}

/// What a compiler says is wrong with a client's grammar, in one line.
pub(super) fn reason(error: &str) -> String {
    const LONGEST: usize = 300;
    let mut lines = error.lines().map(str::trim);
    let first = lines.next().unwrap_or_default();
    // Of a regular expression, the last line says what is the matter.
    let what = match first.strip_suffix("regex parse error:") {
        Some(where_) => match lines.find_map(|line| line.strip_prefix("error: ")) {
            Some(what) => format!("{where_}{what}"),
            None => first.to_owned(),
        },
        None => first.to_owned(),
    };
    // Lines and columns are those of the client's own text: `at 3(8): …`, or without `at`.
    let place = what.strip_prefix("at ").unwrap_or(&what);
    let placed = place.split_once("): ").and_then(|(place, what)| {
        let (line, column) = place.split_once('(')?;
        let (line, column): (u32, u32) = (line.parse().ok()?, column.parse().ok()?);
        Some(format!("line {line}, column {column}: {what}"))
    });
    let mut reason = placed.unwrap_or(what);
    if let Some((end, _)) = reason.char_indices().nth(LONGEST) {
        reason.truncate(end);
        reason.push('…');
    }
    reason
}

/// A grammar without its strings, regular expressions and comments.
fn without_literals(lark: &str) -> String {
    let mut bare = String::new();
    let mut chars = lark.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '#' => while chars.next_if(|&next| next != '\n').is_some() {},
            '/' if chars.peek() == Some(&'/') => {
                while chars.next_if(|&next| next != '\n').is_some() {}
            }
            '"' | '/' => {
                while let Some(next) = chars.next_if(|&next| next != '\n') {
                    if next == c {
                        break;
                    }
                    if next == '\\' {
                        chars.next_if(|&next| next != '\n');
                    }
                }
            }
            c => bare.push(c),
        }
    }
    bare
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grammars_that_people_write_pass() {
        for lark in [
            "start: expr\nexpr: term (\" \" ADD \" \" term)*\nterm: INT\nADD: \"+\"\nINT: /[0-9]+/\n",
            "// a <comment>\nstart: \"<html>\" /<[a-z]+@\\/>/ # <x> @y\n",
            "%import common.LF\nstart: line+\nline: /(.*)/ LF -> line\n",
        ] {
            assert_eq!(check_lark(lark), Ok(()), "{lark}");
        }
    }

    #[test]
    fn more_than_text_and_endless_recursion_are_refused() {
        let refused = |lark: &str| check_lark(lark).unwrap_err();
        assert_eq!(
            refused("start: \"a\"\n  | <|im_end|>\n"),
            "line 2: special tokens such as <name> cannot be used"
        );
        assert!(refused("start: @other\n").contains("other grammars"));
        assert!(refused("start: %json {}\n").contains("takes a schema"));
        let rules: String = (0..1_001).map(|i| format!("r{i}: r{}\n", i + 1)).collect();
        assert!(refused(&rules).contains("1000 rules"));
        assert!(refused(&"#".repeat(BYTES + 1)).contains("bytes"));
    }

    #[test]
    fn a_regular_expression_is_one_terminal() {
        assert_eq!(terminal("^[a-z/]+$").unwrap(), r"/[a-z\/]+/");
        assert_eq!(terminal("a\\/b\\$").unwrap(), r"/a\/b\$/");
        assert_eq!(
            terminal("a/ | start: \"b\"").unwrap(),
            "/a\\/ | start: \"b\"/"
        );
        assert_eq!(terminal("a\nb").unwrap(), r"/a\nb/");
        assert!(terminal("^$").is_err());
    }

    #[test]
    fn reasons_are_one_line_about_the_clients_own_text() {
        let error = "at 1(8): unknown name: \"foo\"\n   1 | start: foo\n              ^\n";
        assert_eq!(reason(error), "line 1, column 8: unknown name: \"foo\"");
        let error = "at 1(8): invalid regex \"(\" (in regex): regex parse error:\n    (\n    ^\nerror: unclosed group\n   1 | x";
        assert_eq!(
            reason(error),
            "line 1, column 8: invalid regex \"(\" (in regex): unclosed group"
        );
        assert_eq!(reason("no start rule found"), "no start rule found");
        assert_eq!(reason(&"a".repeat(400)).chars().count(), 301);
    }
}
