//! Answers as bytes. Each says `Connection: close`: probes come on a new connection anyway.

use super::ProbeAnswer;
use super::request::Refusal;

const JSON: &str = "application/json";
/// What Prometheus asks for by this name is what the `prometheus` crate writes.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) fn probe(answer: &ProbeAnswer, head_only: bool) -> Vec<u8> {
    let status = if answer.ok { "200 OK" } else { "503 Service Unavailable" };
    render(status, JSON, "", answer.body.as_bytes(), head_only)
}

pub(super) fn status(body: &[u8], head_only: bool) -> Vec<u8> {
    render("200 OK", JSON, "", body, head_only)
}

pub(super) fn metrics(body: &[u8], head_only: bool) -> Vec<u8> {
    render("200 OK", METRICS, "", body, head_only)
}

/// The source panicked.
pub(super) fn panicked(head_only: bool) -> Vec<u8> {
    let body =
        br#"{"error":"the answer could not be worked out; the log says why","code":"internal"}"#;
    render("500 Internal Server Error", JSON, "", body, head_only)
}

/// `/status` and `/metrics` cannot be gathered in time.
pub(super) fn busy(head_only: bool) -> Vec<u8> {
    let body =
        br#"{"error":"gathering takes too long; probes are answered as ever","code":"busy"}"#;
    render("503 Service Unavailable", JSON, "Retry-After: 1\r\n", body, head_only)
}

pub(super) fn refusal(refusal: Refusal, head_only: bool) -> Vec<u8> {
    let (status, extra, body): (_, _, &[u8]) = match refusal {
        Refusal::Malformed => {
            ("400 Bad Request", "", br#"{"error":"this is not HTTP","code":"malformed"}"#)
        }
        Refusal::Version => (
            "505 HTTP Version Not Supported",
            "",
            br#"{"error":"only HTTP/1.0 and HTTP/1.1 are spoken here","code":"version"}"#,
        ),
        Refusal::TooLarge => (
            "431 Request Header Fields Too Large",
            "",
            br#"{"error":"the head of a request may have 8 KiB and 64 headers","code":"too_large"}"#,
        ),
        Refusal::Method => (
            "405 Method Not Allowed",
            "Allow: GET, HEAD\r\n",
            br#"{"error":"only GET and HEAD are answered here","code":"method_not_allowed"}"#,
        ),
        Refusal::NotFound => (
            "404 Not Found",
            "",
            br#"{"error":"there are /startup, /live, /ready, /status and /metrics","code":"not_found"}"#,
        ),
        Refusal::TooSlow => (
            "408 Request Timeout",
            "",
            br#"{"error":"the request did not arrive in time","code":"too_slow"}"#,
        ),
    };
    render(status, JSON, extra, body, head_only)
}

fn render(status: &str, content_type: &str, extra: &str, body: &[u8], head_only: bool) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\
         Cache-Control: no-store\r\n{extra}Connection: close\r\n\r\n",
        body.len()
    );
    let mut bytes = head.into_bytes();
    if !head_only {
        bytes.extend_from_slice(body);
    }
    bytes
}
