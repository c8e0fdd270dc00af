//! Target: the server to measure.

use anyhow::Context;

#[derive(Debug, clap::Args)]
pub(crate) struct Target {
    /// Base URL of the server
    #[arg(default_value = "http://127.0.0.1:8080/v1")]
    pub(crate) url: String,
    /// Model to ask for
    #[arg(long)]
    pub(crate) model: String,
    /// API key, if the server wants one
    #[arg(long, env = "TURNWIRE_API_KEY", hide_env_values = true)]
    pub(crate) api_key: Option<String>,
}

impl Target {
    /// Host with port, and path, of the base URL, for the relay that counts bytes.
    pub(crate) fn host_and_path(&self) -> anyhow::Result<(String, String)> {
        parse(&self.url)
    }
}

/// The relay speaks plain TCP, so TLS is not for it.
fn parse(url: &str) -> anyhow::Result<(String, String)> {
    let rest = url
        .strip_prefix("http://")
        .or_else(|| url.strip_prefix("ws://"))
        .with_context(|| format!("{url}: the URL must begin with http:// or ws://"))?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let host = match host.rsplit_once(':') {
        Some((_, port)) if port.parse::<u16>().is_ok() => host.to_owned(),
        _ => format!("{host}:80"),
    };
    let path = path.trim_end_matches('/');
    let slash = if path.is_empty() { "" } else { "/" };
    Ok((host, format!("{slash}{path}")))
}

#[cfg(test)]
mod tests {
    #[test]
    fn base_urls_are_taken_apart() {
        let parse = |url| super::parse(url).expect("a URL");
        let parts = |host: &str, path: &str| (host.to_owned(), path.to_owned());
        assert_eq!(parse("http://127.0.0.1:9/v1"), parts("127.0.0.1:9", "/v1"));
        assert_eq!(parse("ws://host/v1/"), parts("host:80", "/v1"));
        assert_eq!(parse("ws://host"), parts("host:80", ""));
        assert!(super::parse("https://host/v1").is_err());
    }
}
