//! Prints the path of a model file, fetching the model first where it is not in the cache:
//! `cargo run -p turnwire --example model_path -- smollm2`

use anyhow::Context;
use turnwire::model_files::{ModelFiles, ModelSource};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let name = std::env::args().nth(1).context("name a model")?;
    let source: ModelSource = name.parse()?;
    let files = ModelFiles::from_environment(|name| std::env::var_os(name));
    println!("{}", files.resolve(&source).await?.display());
    Ok(())
}
