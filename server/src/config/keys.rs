//! The table of keys. A key that does not stand here does not exist.

/// One key of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// Section and name, with a dot.
    pub name: &'static str,
    /// What it sets, in one line, with its unit.
    pub help: &'static str,
}

/// Every key, in the order in which `balm check` prints them.
pub const KEYS: &[Key] = &[
    key("repository.path", "folder with one folder per model"),
    key("repository.integrity", "off, digest (checked where SHA256SUMS is) or required"),
    key("repository.control", "whether clients may load and unload models"),
    key("repository.readiness", "all, any, or the models that must serve"),
    key("repository.max_file_bytes", "bytes that one file of a model may have"),
    key("repository.load_timeout_ms", "milliseconds that the load of a version may take"),
    key("http.addr", "address:port or unix:/path for predictions"),
    key("http.threads", "threads of the HTTP runtime"),
    key("http.max_body_bytes", "bytes that a request body may have"),
    key("http.header_timeout_ms", "milliseconds for the head of a request to arrive"),
    key("http.body_timeout_ms", "milliseconds for the body of a request to arrive"),
    key("http.min_body_bytes_per_s", "bytes a second that a body must come with; 0 for any pace"),
    key("http.write_timeout_ms", "milliseconds that an answer may be stuck"),
    key("http.idle_timeout_ms", "milliseconds to keep a connection without a request"),
    key("http.max_connections", "connections at once"),
    key("http.access_log", "whether each request is logged"),
    key("http.noop_route", "whether POST /noop exists, the yardstick of benchmarks"),
    key("management.addr", "address:port for probes and metrics"),
    key("management.triton_metrics", "whether /metrics has Triton's nv_inference_* names too"),
    key("admission.max_in_flight", "requests waiting or running at once, in total"),
    key("admission.max_in_flight_per_model", "requests waiting or running at once, per model"),
    key("admission.max_bytes_in_flight", "bytes of request bodies held at once"),
    key(
        "admission.client_header",
        "header that tells clients apart; without it, their address does",
    ),
    key(
        "admission.memory_limit_bytes",
        "bytes that this process may hold before it turns requests away",
    ),
    key("defaults.lanes", "sessions per model, each with a thread of its own"),
    key("defaults.threads", "threads of the engine within one lane"),
    key("defaults.providers", "execution providers, the preferred one first"),
    key("defaults.fallback", "cpu: serve degraded without the providers; none: fail"),
    key("defaults.deadline_ms", "milliseconds for a request that names no deadline"),
    key("defaults.max_deadline_ms", "milliseconds that a request may ask for at most"),
    key("defaults.max_batch_rows", "rows that a batch may have"),
    key("onnxruntime.library", "the ONNX Runtime library; ORT_DYLIB_PATH sets it too"),
    key("onnxruntime.log_level", "verbose, info, warning, error or fatal"),
    key("lifecycle.drain_delay_ms", "milliseconds to go on serving after SIGTERM"),
    key("lifecycle.drain_timeout_ms", "milliseconds for running requests to finish after that"),
    key("lifecycle.single_process", "whether to serve without a supervisor"),
    key("lifecycle.sidecar", "whether another container waits for /startup"),
    key("lifecycle.crash_journal", "file that remembers why servers gave up, or none"),
    key("lifecycle.termination_log", "file for the reason of an end, in JSON, or none"),
    key("log.format", "text or json"),
    key("log.level", "level or filter, such as info,balm_server=debug"),
];

/// Prefix of the variables that are ours.
pub(super) const PREFIX: &str = "BALM_";

/// Names the configuration file. It belongs to the command line and is no key.
pub(super) const CONFIG_VARIABLE: &str = "BALM_CONFIG";

/// Known to everyone who uses ONNX Runtime by dynamic loading; gives way to our own variable.
pub(super) const ORT_VARIABLE: &str = "ORT_DYLIB_PATH";

const fn key(name: &'static str, help: &'static str) -> Key {
    Key { name, help }
}

// ===== impl Key =====

impl Key {
    /// The variable that sets the key.
    pub fn variable(&self) -> String {
        format!("{PREFIX}{}", self.name.replace('.', "_").to_ascii_uppercase())
    }
}

/// The key of that name.
pub(super) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// The key that the variable sets.
pub(super) fn by_variable(variable: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.variable() == variable)
}

/// Whether the variable is one that Kubernetes sets in every pod for a service whose name begins with `balm`.
///
/// A service `balm` gives `BALM_SERVICE_HOST`, `BALM_PORT=tcp://10.0.0.1:8000`, `BALM_PORT_8000_TCP_ADDR` and so on.
/// They are no misspelt keys of ours, and to refuse to start over them would be a bad joke.
pub(super) fn is_kubernetes_service(variable: &str, value: &str) -> bool {
    let has_scheme = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    if variable.ends_with("_SERVICE_HOST")
        || variable.ends_with("_SERVICE_PORT")
        || variable.contains("_SERVICE_PORT_")
        || (variable.ends_with("_PORT") && has_scheme)
    {
        return true;
    }
    // …_PORT_8000_TCP, and the same with _PROTO, _PORT or _ADDR behind it.
    let Some(at) = variable.rfind("_PORT_").filter(|_| !variable.ends_with("_PORT_")) else {
        return false;
    };
    let (number, rest) = match variable[at + "_PORT_".len()..].split_once('_') {
        Some(parts) => parts,
        None => return false,
    };
    let protocol = rest.split('_').next().unwrap_or_default();
    let suffix = &rest[protocol.len()..];
    !number.is_empty()
        && number.bytes().all(|byte| byte.is_ascii_digit())
        && matches!(protocol, "TCP" | "UDP" | "SCTP")
        && matches!(suffix, "" | "_PROTO" | "_PORT" | "_ADDR")
}

/// The one of `known` that `word` is most likely meant to be, if any is near.
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // A key under the wrong section is the commonest slip, and far away by letters.
    let last = word.rsplit('.').next().unwrap_or(word);
    known
        .into_iter()
        .filter_map(|candidate| {
            let candidate_last = candidate.rsplit('.').next().unwrap_or(candidate);
            let edits = edit_distance(word, candidate);
            let allowed = (word.chars().count().max(candidate.chars().count()) / 4).clamp(1, 3);
            if edits <= allowed {
                Some((edits, candidate))
            } else if word.contains('.') && last == candidate_last {
                Some((allowed + 1, candidate))
            } else {
                None
            }
        })
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate)
}

/// Letters to insert, delete or replace to get from one word to the other (Levenshtein).
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for j in 0..b.len() {
            let replaced = diagonal + usize::from(letter != b[j]);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_unambiguous() {
        let mut variables: Vec<String> = KEYS.iter().map(Key::variable).collect();
        for (key, variable) in KEYS.iter().zip(&variables) {
            assert_eq!(by_variable(variable), Some(key));
            assert!(!is_kubernetes_service(variable, "8"), "{variable}");
            assert!(key.name.split('.').count() == 2, "{}", key.name);
        }
        variables.push(CONFIG_VARIABLE.to_owned());
        let count = variables.len();
        variables.sort();
        variables.dedup();
        assert_eq!(variables.len(), count);
        assert!(by_variable("BALM_HTTP_ADDR").is_some_and(|key| key.name == "http.addr"));
    }

    #[test]
    fn what_kubernetes_sets() {
        let cases = [
            ("BALM_SERVICE_HOST", "10.0.0.1", true),
            ("BALM_SERVICE_PORT", "8000", true),
            ("BALM_SERVICE_PORT_HTTP", "8000", true),
            ("BALM_PORT", "tcp://10.0.0.1:8000", true),
            ("BALM_PORT_8000_TCP", "tcp://10.0.0.1:8000", true),
            ("BALM_PORT_8000_TCP_PROTO", "tcp", true),
            ("BALM_PORT_8000_TCP_PORT", "8000", true),
            ("BALM_PORT_8000_TCP_ADDR", "10.0.0.1", true),
            ("BALM_HTTP_SERVICE_HOST", "10.0.0.1", true),
            ("BALM_HTTP_PORT", "udp://10.0.0.1:8000", true),
            ("BALM_HTTP_PORT", "8000", false),
            ("BALM_PORT_X_TCP", "", false),
            ("BALM_PORT_80_HTTP", "", false),
            ("BALM_PORT_", "", false),
            ("BALM_HTTP_ADR", "127.0.0.1:1", false),
        ];
        for (variable, value, expected) in cases {
            assert_eq!(is_kubernetes_service(variable, value), expected, "{variable}={value}");
        }
    }

    #[test]
    fn slips_are_understood() {
        let names = || KEYS.iter().map(|key| key.name);
        let cases = [
            ("http.adr", Some("http.addr")),
            ("htp.addr", Some("http.addr")),
            ("http.drain_delay_ms", Some("lifecycle.drain_delay_ms")),
            ("repository.integrety", Some("repository.integrity")),
            ("jobs.store", None),
        ];
        for (word, meant) in cases {
            assert_eq!(nearest(word, names()), meant, "{word}");
        }
        assert_eq!(nearest("inof", ["trace", "debug", "info"]), None);
        assert_eq!(nearest("ino", ["trace", "debug", "info"]), Some("info"));
    }
}
