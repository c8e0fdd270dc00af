//! Which file of a repository to serve when the user names none.

use std::fmt::Write;

use super::name::GgufPath;

/// Best first: little is lost with the first; the second is the usual compromise for large models.
const PREFERRED: [&str; 2] = ["Q8_0", "Q4_K_M"];

#[derive(Debug, thiserror::Error)]
pub(super) enum NoChoice {
    #[error(
        "holds no GGUF file. Repositories with GGUF files are often called like the model with \
         `-GGUF` at the end"
    )]
    NoModel,
    #[error(
        "holds its model only as a set of part files, which is not supported; join them with \
         llama.cpp's `llama-gguf-split --merge` and give the path of the result"
    )]
    OnlyParts,
    #[error("holds several models; name one as `hf:OWNER/REPO:FILE`:{}", list(.0))]
    Several(Vec<String>),
    #[error("has no file {wanted}; it holds:{}", list(.held))]
    NoSuchFile { wanted: String, held: Vec<String> },
}

/// The only model, or the one with a preferred quantisation.
pub(super) fn choose<'a>(
    files: impl IntoIterator<Item = &'a GgufPath>,
) -> Result<&'a GgufPath, NoChoice> {
    let (parts, models): (Vec<_>, Vec<_>) = files
        .into_iter()
        .filter(|file| !is_companion(file))
        .partition(|file| is_part(file));
    if let [only] = models[..] {
        return Ok(only);
    }
    for quantisation in PREFERRED {
        let mut fitting = models.iter().filter(|file| ends_with(file, quantisation));
        if let (Some(only), None) = (fitting.next(), fitting.next()) {
            return Ok(only);
        }
    }
    Err(match (models.is_empty(), parts.is_empty()) {
        (true, true) => NoChoice::NoModel,
        (true, false) => NoChoice::OnlyParts,
        (false, _) => NoChoice::Several(models.iter().map(ToString::to_string).collect()),
    })
}

/// Files that go with a model without being one: image encoders, quantisation statistics.
fn is_companion(file: &GgufPath) -> bool {
    let name = file.file_name().to_ascii_lowercase();
    name.contains("mmproj") || name.contains("imatrix")
}

/// `…-00001-of-00003.gguf`.
pub(super) fn is_part(file: &GgufPath) -> bool {
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    stem(file)
        .rsplit_once("-of-")
        .is_some_and(|(start, count)| {
            digits(count)
                && start
                    .rsplit_once('-')
                    .is_some_and(|(_, number)| digits(number))
        })
}

fn ends_with(file: &GgufPath, quantisation: &str) -> bool {
    let stem = stem(file).to_ascii_uppercase();
    stem.strip_suffix(quantisation)
        .is_some_and(|before| before.is_empty() || before.ends_with(['-', '.', '_']))
}

fn stem(file: &GgufPath) -> &str {
    file.file_name().trim_end_matches(".gguf")
}

fn list(files: &[String]) -> String {
    const SHOWN: usize = 40;
    let mut text = String::new();
    for file in files.iter().take(SHOWN) {
        let _ = write!(text, "\n  {file}");
    }
    if files.len() > SHOWN {
        let _ = write!(text, "\n  and {} more", files.len() - SHOWN);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(files: &[&str]) -> Result<String, NoChoice> {
        let files: Vec<_> = files
            .iter()
            .map(|file| GgufPath::parse(file).unwrap())
            .collect();
        choose(&files).map(ToString::to_string)
    }

    #[test]
    fn the_only_model_is_chosen_whatever_lies_beside_it() {
        let files = [
            "m-IQ2_XS.gguf",
            "mmproj-F16.gguf",
            "m.imatrix.gguf",
            "m-BF16-00001-of-00002.gguf",
        ];
        assert_eq!(chosen(&files).unwrap(), "m-IQ2_XS.gguf");
    }

    #[test]
    fn of_several_a_usual_quantisation_is_chosen() {
        assert_eq!(
            chosen(&["m-Q4_K_M.gguf", "m-q8_0.gguf", "m-F16.gguf"]).unwrap(),
            "m-q8_0.gguf"
        );
        assert_eq!(
            chosen(&["m.Q4_K_M.gguf", "m.Q2_K.gguf"]).unwrap(),
            "m.Q4_K_M.gguf"
        );
        // Two models in one repository: the quantisation does not tell which is meant.
        assert!(matches!(
            chosen(&["a-Q8_0.gguf", "b-Q8_0.gguf"]),
            Err(NoChoice::Several(files)) if files.len() == 2
        ));
        // Not Q8_0 but something that merely ends like it.
        assert!(matches!(
            chosen(&["m-XQ8_0.gguf", "m-F16.gguf"]),
            Err(NoChoice::Several(_))
        ));
    }

    #[test]
    fn without_a_model_the_message_says_what_there_is() {
        assert!(matches!(chosen(&[]), Err(NoChoice::NoModel)));
        let parts = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"];
        assert!(matches!(chosen(&parts), Err(NoChoice::OnlyParts)));
        let many: Vec<String> = (0..50).map(|n| format!("m{n}.gguf")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let message = chosen(&many).unwrap_err().to_string();
        assert!(
            message.contains("\n  m39.gguf") && message.ends_with("and 10 more"),
            "{message}"
        );
    }
}
