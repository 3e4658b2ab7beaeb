//! The kinds of values that keys have, beyond numbers and texts.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use axum::http::HeaderName;
use balm_inference::engine::RuntimeLogLevel;
use balm_inference::integrity::Policy;
use balm_inference::provider::Provider;
use balm_probes::ReadinessPolicy;
use tracing_subscriber::EnvFilter;

use super::keys;
use super::raw::Raw;
use super::read::{Parsed, list, text};

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Where the data port listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddr {
    /// Address and port; port 0 lets the kernel choose.
    Tcp(SocketAddr),
    /// A socket file.
    Unix(PathBuf),
}

/// Longest path of a unix socket: `sun_path` has 108 bytes, the last one zero.
const UNIX_PATH_BYTES_MAX: usize = 107;

pub(super) const INTEGRITY: &[(&str, Policy)] =
    &[("off", Policy::Off), ("digest", Policy::Digest), ("required", Policy::Required)];

pub(super) const LOG_FORMATS: &[(&str, LogFormat)] =
    &[("text", LogFormat::Text), ("json", LogFormat::Json)];

pub(super) const ORT_LOG_LEVELS: &[(&str, RuntimeLogLevel)] = &[
    ("verbose", RuntimeLogLevel::Verbose),
    ("info", RuntimeLogLevel::Info),
    ("warning", RuntimeLogLevel::Warning),
    ("error", RuntimeLogLevel::Error),
    ("fatal", RuntimeLogLevel::Fatal),
];

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenAddr::Tcp(addr) => addr.fmt(f),
            ListenAddr::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The word of a value, out of one of the tables above.
pub(super) fn word<T: PartialEq>(words: &'static [(&'static str, T)]) -> impl Fn(&T) -> String {
    move |value| {
        let found = words.iter().find(|(_, candidate)| candidate == value);
        found.map(|(word, _)| (*word).to_owned()).unwrap_or_default()
    }
}

pub(super) fn path(raw: &Raw) -> Parsed<PathBuf> {
    let text = text(raw, "a path")?;
    if text.contains('\0') {
        return Err("a path without NUL".to_owned());
    }
    Ok(PathBuf::from(text))
}

/// A path, or `none`.
pub(super) fn optional_path(raw: &Raw) -> Parsed<Option<PathBuf>> {
    match text(raw, "a path, or none")? {
        "none" => Ok(None),
        "" => Err("a path, or none".to_owned()),
        _ => path(raw).map(Some),
    }
}

pub(super) fn socket_addr(raw: &Raw) -> Parsed<SocketAddr> {
    const EXPECTED: &str = "address:port, such as 127.0.0.1:8002 or [::]:8002";
    parse_addr(text(raw, EXPECTED)?).ok_or_else(|| EXPECTED.to_owned())
}

pub(super) fn listen_addr(raw: &Raw) -> Parsed<ListenAddr> {
    const EXPECTED: &str = "address:port, such as 127.0.0.1:8000 or [::]:8000, or unix:/path";
    let text = text(raw, EXPECTED)?;
    if let Some(path) = text.strip_prefix("unix:") {
        return match path.len() {
            0 => Err(EXPECTED.to_owned()),
            1..=UNIX_PATH_BYTES_MAX if !path.contains('\0') => Ok(ListenAddr::Unix(path.into())),
            _ => Err(format!("a socket path of at most {UNIX_PATH_BYTES_MAX} bytes without NUL")),
        };
    }
    parse_addr(text).map(ListenAddr::Tcp).ok_or_else(|| EXPECTED.to_owned())
}

/// An address and port. Names are not looked up, but the one that everybody types.
fn parse_addr(text: &str) -> Option<SocketAddr> {
    let numeric = text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
    numeric.as_deref().unwrap_or(text).parse().ok()
}

pub(super) fn readiness(raw: &Raw) -> Parsed<ReadinessPolicy> {
    const EXPECTED: &str = "\"all\", \"any\" or a list of model names";
    match raw {
        Raw::Text(word) | Raw::Untyped(word) if word == "all" => Ok(ReadinessPolicy::All),
        Raw::Text(word) | Raw::Untyped(word) if word == "any" => Ok(ReadinessPolicy::Any),
        _ => {
            let names = list(raw, EXPECTED)?;
            if let Some(bad) = names.iter().find(|name| !is_folder_name(name)) {
                return Err(format!("{EXPECTED}; {bad:?} cannot be one, for it is no folder name"));
            }
            Ok(ReadinessPolicy::Listed(names))
        }
    }
}

fn is_folder_name(name: &str) -> bool {
    name != "." && name != ".." && !name.contains(['/', '\0'])
}

pub(super) fn show_readiness(policy: &ReadinessPolicy) -> String {
    match policy {
        ReadinessPolicy::All => "all".to_owned(),
        ReadinessPolicy::Any => "any".to_owned(),
        ReadinessPolicy::Listed(names) => names.join(","),
    }
}

pub(super) fn providers(raw: &Raw) -> Parsed<Vec<Provider>> {
    let known = || Provider::ALL.into_iter().map(Provider::name);
    let expected =
        format!("a list of execution providers out of {}", known().collect::<Vec<_>>().join(", "));
    let names = list(raw, &expected)?;
    names
        .iter()
        .map(|name| {
            name.parse().map_err(|_| match keys::nearest(name, known()) {
                Some(meant) => format!("{expected}; did you mean {meant}?"),
                None => expected.clone(),
            })
        })
        .collect()
}

pub(super) fn show_providers(providers: &[Provider]) -> String {
    providers.iter().map(|provider| provider.name()).collect::<Vec<_>>().join(",")
}

/// A header's name, or `none`.
pub(super) fn header_name(raw: &Raw) -> Parsed<Option<HeaderName>> {
    const EXPECTED: &str = "the name of a header, such as x-client-id, or none";
    match text(raw, EXPECTED)? {
        "none" => Ok(None),
        name => HeaderName::from_bytes(name.as_bytes()).map(Some).map_err(|_| EXPECTED.to_owned()),
    }
}

/// A number of bytes, or `cgroup` for what leaving it out means.
pub(super) fn memory_limit(raw: &Raw) -> Parsed<Option<u64>> {
    const EXPECTED: &str = "cgroup, or a number of bytes from 16777216 on";
    let bytes = match raw {
        Raw::Untyped(word) | Raw::Text(word) if word == "cgroup" => return Ok(None),
        Raw::Untyped(digits) => digits.parse().ok(),
        Raw::Integer(Some(number)) => u64::try_from(*number).ok(),
        _ => None,
    };
    bytes.filter(|bytes| *bytes >= 1 << 24).map(Some).ok_or_else(|| EXPECTED.to_owned())
}

/// `cpu`, or `none` for what leaving it out means.
pub(super) fn fallback(raw: &Raw) -> Parsed<Option<Provider>> {
    match text(raw, "cpu or none")? {
        "cpu" => Ok(Some(Provider::Cpu)),
        "none" => Ok(None),
        _ => Err("cpu or none".to_owned()),
    }
}

/// A level or filter directives. A bare word that is no level would silently be taken for a module's name, so it is refused.
pub(super) fn log_level(raw: &Raw) -> Parsed<String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    const EXPECTED: &str =
        "off, error, warn, info, debug, trace, or a filter such as info,balm_server=debug";
    let directives = text(raw, EXPECTED)?;
    for directive in directives.split(',').map(str::trim) {
        let level = directive.to_ascii_lowercase();
        if directive.contains(['=', '[']) || LEVELS.contains(&level.as_str()) {
            continue;
        }
        return Err(match keys::nearest(&level, LEVELS) {
            Some(meant) => format!("{EXPECTED}; did you mean {meant}?"),
            None => EXPECTED.to_owned(),
        });
    }
    match EnvFilter::builder().parse(directives) {
        Ok(_) => Ok(directives.to_owned()),
        Err(error) => Err(format!("{EXPECTED}; the filter says: {error}")),
    }
}
