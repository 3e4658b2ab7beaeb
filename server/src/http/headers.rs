//! What the head of a request says: its headers, found in one pass, and the deadlines among them.

use super::error::ApiError;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use balm_inference::clip::clipped;
use std::time::Duration;

const REQUEST_TIMEOUT_MS: &str = "x-request-timeout-ms";
const GRPC_TIMEOUT: &str = "grpc-timeout";
/// Header that says how much a request matters.
pub(super) const REQUEST_CLASS: &str = "x-request-class";
/// Header of the request's id, accepted and given back.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Length of the JSON part of a body with binary tensors, bytes.
pub(super) const JSON_LENGTH: HeaderName = HeaderName::from_static(JSON_LENGTH_TEXT);
const JSON_LENGTH_TEXT: &str = "inference-header-content-length";
const CONTENT_ENCODING: &str = "content-encoding";

/// The headers that matter on the way of a prediction, each the first of its name.
///
/// A request has few headers, and a look-up hashes the name each time: going through them once is a fifth of the work.
#[derive(Clone, Copy, Default)]
pub(super) struct Head<'a> {
    pub(super) id: Option<&'a HeaderValue>,
    pub(super) class: Option<&'a HeaderValue>,
    /// What clients are told apart by, where that is a header.
    pub(super) client: Option<&'a HeaderValue>,
    pub(super) accept_encoding: Option<&'a HeaderValue>,
    pub(super) expect: Option<&'a HeaderValue>,
    timeout_ms: Option<&'a HeaderValue>,
    grpc_timeout: Option<&'a HeaderValue>,
    content_length: Option<&'a HeaderValue>,
    content_encoding: Option<&'a HeaderValue>,
    json_length: Option<&'a HeaderValue>,
}

impl<'a> Head<'a> {
    /// Goes through `headers`. `client` is the header that clients are told apart by, if there is one.
    pub(super) fn of(headers: &'a HeaderMap, client: Option<&HeaderName>) -> Self {
        let mut head = Head::default();
        for (name, value) in headers {
            let place = match name.as_str() {
                "content-length" => &mut head.content_length,
                CONTENT_ENCODING => &mut head.content_encoding,
                JSON_LENGTH_TEXT => &mut head.json_length,
                "x-request-id" => &mut head.id,
                REQUEST_CLASS => &mut head.class,
                REQUEST_TIMEOUT_MS => &mut head.timeout_ms,
                GRPC_TIMEOUT => &mut head.grpc_timeout,
                "accept-encoding" => &mut head.accept_encoding,
                "expect" => &mut head.expect,
                _ => &mut None,
            };
            place.get_or_insert(value);
            if client == Some(name) {
                head.client.get_or_insert(value);
            }
        }
        head
    }

    /// `Content-Length`; hyper has refused what is no number already.
    pub(super) fn announced_bytes(&self) -> Option<u64> {
        self.content_length?.to_str().ok()?.parse().ok()
    }

    /// What is needed to read the body.
    pub(super) fn coding(&self) -> Coding {
        Coding { encoding: self.content_encoding.cloned(), json_length: self.json_length.cloned() }
    }
}

/// How the body of a request is to be read.
pub(super) struct Coding {
    encoding: Option<HeaderValue>,
    json_length: Option<HeaderValue>,
}

impl Coding {
    /// How it is compressed.
    pub(super) fn encoding(&self) -> Result<Option<&str>, ApiError> {
        text(self.encoding.as_ref(), CONTENT_ENCODING)
    }

    /// The length of its JSON part, as it was written.
    pub(super) fn json_length(&self) -> Result<Option<&str>, ApiError> {
        text(self.json_length.as_ref(), JSON_LENGTH_TEXT)
    }
}

/// The shortest of the deadlines that the headers ask for; `None` when they ask for none.
///
/// `x-request-timeout-ms`: whole milliseconds. `grpc-timeout`: up to eight digits and a unit, as in the gRPC
/// protocol: `H M S m u n`. Zero is neither: for some clients it means "at once" and for others "never", and a guess
/// would be wrong for one of them. (The parameter `timeout` of a body may be 0, which Triton's clients send for "none".)
pub(super) fn requested_deadline(head: &Head<'_>) -> Result<Option<Duration>, ApiError> {
    let milliseconds = text(head.timeout_ms, REQUEST_TIMEOUT_MS)?
        .map(|value| {
            let millis = value.parse::<u64>().ok().filter(|millis| *millis > 0);
            millis.map(Duration::from_millis).ok_or_else(|| ApiError::Header {
                name: REQUEST_TIMEOUT_MS,
                problem: format!(
                    "{:?} is not a whole number of milliseconds from 1; leave the header out to ask for no deadline",
                    clipped(value)
                ),
            })
        })
        .transpose()?;
    let grpc = text(head.grpc_timeout, GRPC_TIMEOUT)?
        .map(|value| {
            grpc_timeout(value).ok_or_else(|| ApiError::Header {
                name: GRPC_TIMEOUT,
                problem: format!(
                    "{:?} is not up to eight digits, not all zero, and one of the units H M S m u n",
                    clipped(value)
                ),
            })
        })
        .transpose()?;
    Ok(match (milliseconds, grpc) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    })
}

/// The text of the header called `name`.
fn text<'a>(
    value: Option<&'a HeaderValue>,
    name: &'static str,
) -> Result<Option<&'a str>, ApiError> {
    let text = |value: &'a HeaderValue| {
        let problem = "the value is not ASCII text";
        value.to_str().map_err(|_| ApiError::Header { name, problem: problem.to_owned() })
    };
    value.map(text).transpose()
}

fn grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok().filter(|count| *count > 0)?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3_600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = pairs.iter();
        pairs
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn the_shortest_counts() {
        let millis = "x-request-timeout-ms";
        let table = [
            (headers(&[]), None),
            (headers(&[(millis, "250")]), Some(Duration::from_millis(250))),
            (headers(&[("grpc-timeout", "2S")]), Some(Duration::from_secs(2))),
            (
                headers(&[("grpc-timeout", "99999999H")]),
                Some(Duration::from_secs(99_999_999 * 3_600)),
            ),
            (
                headers(&[("grpc-timeout", "100m"), (millis, "250")]),
                Some(Duration::from_millis(100)),
            ),
            (headers(&[("grpc-timeout", "1H"), (millis, "250")]), Some(Duration::from_millis(250))),
        ];
        for (headers, expected) in table {
            let head = Head::of(&headers, None);
            assert_eq!(requested_deadline(&head).unwrap(), expected, "{headers:?}");
        }
    }

    #[test]
    fn each_header_has_its_place_and_the_first_of_a_name_counts() {
        let names = [
            "x-request-id",
            "x-request-class",
            "x-client-id",
            "accept-encoding",
            "expect",
            "x-request-timeout-ms",
            "grpc-timeout",
            "content-length",
            "content-encoding",
            "inference-header-content-length",
            "x-other",
        ];
        let mut headers = HeaderMap::new();
        for value in ["1", "2"] {
            for name in names {
                headers.append(name, HeaderValue::from_static(value));
            }
        }
        let client = HeaderName::from_static("x-client-id");
        let Head {
            id,
            class,
            client,
            accept_encoding,
            expect,
            timeout_ms,
            grpc_timeout,
            content_length,
            content_encoding,
            json_length,
        } = Head::of(&headers, Some(&client));
        let found = [
            id,
            class,
            client,
            accept_encoding,
            expect,
            timeout_ms,
            grpc_timeout,
            content_length,
            content_encoding,
            json_length,
        ];
        assert_eq!(found, [Some(&HeaderValue::from_static("1")); 10]);
        let head = Head::of(&headers, Some(&REQUEST_ID));
        assert_eq!(head.client, head.id, "whichever header tells clients apart");
        assert!(Head::of(&headers, None).client.is_none());
        assert_eq!(head.announced_bytes(), Some(1));
        assert_eq!(head.coding().json_length().unwrap(), Some("1"));
        assert_eq!(head.coding().encoding().unwrap(), Some("1"));
    }

    #[test]
    fn nonsense_is_named() {
        for value in ["", "S", "1", "1x", "123456789S", "-1S", "1.5S", "é", "0S", "00n"] {
            assert_eq!(grpc_timeout(value), None, "{value}");
        }
        for value in ["1.5", "0", "-1", "", "1s"] {
            let headers = headers(&[("x-request-timeout-ms", value)]);
            let error = requested_deadline(&Head::of(&headers, None)).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!(
                    "header x-request-timeout-ms: {value:?} is not a whole number of milliseconds from 1; leave the header out to ask for no deadline"
                )
            );
        }
    }
}
