//! Deadlines that clients send in headers.

use super::error::ApiError;
use axum::http::{HeaderMap, HeaderName};
use balm_inference::clip::clipped;
use std::time::Duration;

// As names and not as text, which would be checked and hashed with every request.
static REQUEST_TIMEOUT_MS: HeaderName = HeaderName::from_static("x-request-timeout-ms");
static GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// The shortest of the deadlines that the headers ask for; `None` when they ask for none.
///
/// `x-request-timeout-ms`: whole milliseconds. `grpc-timeout`: up to eight digits and a unit, as in the gRPC
/// protocol: `H M S m u n`. Zero is neither: for some clients it means "at once" and for others "never", and a guess
/// would be wrong for one of them. (The parameter `timeout` of a body may be 0, which Triton's clients send for "none".)
pub(super) fn requested_deadline(headers: &HeaderMap) -> Result<Option<Duration>, ApiError> {
    let milliseconds = text(headers, &REQUEST_TIMEOUT_MS)?
        .map(|value| {
            let millis = value.parse::<u64>().ok().filter(|millis| *millis > 0);
            millis.map(Duration::from_millis).ok_or_else(|| ApiError::Header {
                name: REQUEST_TIMEOUT_MS.as_str(),
                problem: format!(
                    "{:?} is not a whole number of milliseconds from 1; leave the header out to ask for no deadline",
                    clipped(value)
                ),
            })
        })
        .transpose()?;
    let grpc = text(headers, &GRPC_TIMEOUT)?
        .map(|value| {
            grpc_timeout(value).ok_or_else(|| ApiError::Header {
                name: GRPC_TIMEOUT.as_str(),
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

/// The text of a header.
pub(super) fn text<'a>(
    headers: &'a HeaderMap,
    name: &'static HeaderName,
) -> Result<Option<&'a str>, ApiError> {
    headers
        .get(name)
        .map(|value| {
            value.to_str().map_err(|_| ApiError::Header {
                name: name.as_str(),
                problem: "the value is not ASCII text".to_owned(),
            })
        })
        .transpose()
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
    use axum::http::{HeaderName, HeaderValue};

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
            assert_eq!(requested_deadline(&headers).unwrap(), expected, "{headers:?}");
        }
    }

    #[test]
    fn nonsense_is_named() {
        for value in ["", "S", "1", "1x", "123456789S", "-1S", "1.5S", "é", "0S", "00n"] {
            assert_eq!(grpc_timeout(value), None, "{value}");
        }
        for value in ["1.5", "0", "-1", "", "1s"] {
            let error =
                requested_deadline(&headers(&[("x-request-timeout-ms", value)])).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!(
                    "header x-request-timeout-ms: {value:?} is not a whole number of milliseconds from 1; leave the header out to ask for no deadline"
                )
            );
        }
    }
}
