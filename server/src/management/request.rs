//! What a client asks, out of the bytes it sent. Pure.

use super::HEAD_BYTES_MAX;

/// Headers that a request may have. Their contents interest nobody here.
const HEADERS_MAX: usize = 64;

/// Something the port can answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Startup,
    Live,
    Ready,
    Status,
    Metrics,
}

/// Why a request gets no answer of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Not HTTP.
    Malformed,
    /// HTTP, but neither 1.0 nor 1.1.
    Version,
    /// More than [`HEAD_BYTES_MAX`] bytes or [`HEADERS_MAX`] headers.
    TooLarge,
    /// Neither GET nor HEAD.
    Method,
    /// Nothing lives at that path.
    NotFound,
    /// The head did not arrive in time.
    TooSlow,
}

/// A request, as far as the answer depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) outcome: Result<Route, Refusal>,
    /// The client wants no body.
    pub(super) head_only: bool,
}

// ===== impl Request =====

impl Request {
    pub(super) fn refused(refusal: Refusal) -> Request {
        Request { outcome: Err(refusal), head_only: false }
    }

    /// The request that the bytes begin with; `None` while its head is not complete.
    pub(super) fn parse(bytes: &[u8]) -> Option<Request> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut head = httparse::Request::new(&mut headers);
        let length = match head.parse(bytes) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) if bytes.len() <= HEAD_BYTES_MAX => return None,
            Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
                return Some(Request::refused(Refusal::TooLarge));
            }
            Err(httparse::Error::Version) => return Some(Request::refused(Refusal::Version)),
            Err(_) => return Some(Request::refused(Refusal::Malformed)),
        };
        if length > HEAD_BYTES_MAX {
            return Some(Request::refused(Refusal::TooLarge));
        }
        let (method, target) = (head.method.unwrap_or_default(), head.path.unwrap_or_default());
        let outcome = match route(target) {
            None => Err(Refusal::NotFound),
            Some(_) if !matches!(method, "GET" | "HEAD") => Err(Refusal::Method),
            Some(route) => Ok(route),
        };
        Some(Request { outcome, head_only: method == "HEAD" })
    }
}

fn route(target: &str) -> Option<Route> {
    // A proxy's form, `http://host/path`, is allowed to everybody.
    let path = match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("/", |slash| &rest[slash..]),
        None => target,
    };
    match path.split(['?', '#']).next().unwrap_or_default() {
        "/startup" => Some(Route::Startup),
        "/live" | "/healthz" | "/v2/health/live" => Some(Route::Live),
        "/ready" | "/v2/health/ready" => Some(Route::Ready),
        "/status" => Some(Route::Status),
        "/metrics" => Some(Route::Metrics),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Option<Request> {
        Request::parse(text.as_bytes())
    }

    #[test]
    fn routes_and_refusals() {
        use Refusal::*;
        use Route::*;
        let cases: [(&str, Result<Route, Refusal>); 20] = [
            ("GET /live HTTP/1.1\r\n\r\n", Ok(Live)),
            ("GET /live HTTP/1.0\r\n\r\n", Ok(Live)),
            ("GET /live HTTP/1.1\nHost: x\n\n", Ok(Live)),
            ("\r\nGET /healthz HTTP/1.1\r\n\r\n", Ok(Live)),
            ("GET /v2/health/live?verbose HTTP/1.1\r\n\r\n", Ok(Live)),
            ("GET http://host:1/ready HTTP/1.1\r\n\r\n", Ok(Ready)),
            ("GET /v2/health/ready HTTP/1.1\r\n\r\n", Ok(Ready)),
            ("GET /startup HTTP/1.1\r\n\r\n", Ok(Startup)),
            ("GET /status HTTP/1.1\r\n\r\n", Ok(Status)),
            ("GET /metrics HTTP/1.1\r\nAccept: */*\r\n\r\nGET /live", Ok(Metrics)),
            ("GET / HTTP/1.1\r\n\r\n", Err(NotFound)),
            ("GET http://host HTTP/1.1\r\n\r\n", Err(NotFound)),
            ("POST /nothing HTTP/1.1\r\n\r\n", Err(NotFound)),
            ("GET /live/ HTTP/1.1\r\n\r\n", Err(NotFound)),
            ("POST /live HTTP/1.1\r\n\r\n", Err(Method)),
            ("get /live HTTP/1.1\r\n\r\n", Err(Method)),
            ("GET /live HTTP/2.0\r\n\r\n", Err(Version)),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Err(Version)),
            ("\u{16}\u{3}\u{1}hello", Err(Malformed)),
            ("GET /live HTTP/1.1\r\nbad header\r\n\r\n", Err(Malformed)),
        ];
        for (text, outcome) in cases {
            assert_eq!(parse(text).map(|request| request.outcome), Some(outcome), "{text:?}");
        }
        assert!(parse("HEAD /live HTTP/1.1\r\n\r\n").unwrap().head_only);
        assert!(parse("HEAD /nothing HTTP/1.1\r\n\r\n").unwrap().head_only);
        assert_eq!(parse(""), None);
        assert_eq!(parse("GET /live HTTP/1.1\r\nHost: x\r\n"), None);
    }

    #[test]
    fn the_size_of_a_head_is_bounded() {
        let head = |bytes: usize| format!("GET /live HTTP/1.1\r\na: {}\r\n\r\n", "x".repeat(bytes));
        let spare = HEAD_BYTES_MAX - head(0).len();
        assert_eq!(parse(&head(spare)).unwrap().outcome, Ok(Route::Live));
        assert_eq!(parse(&head(spare + 1)).unwrap().outcome, Err(Refusal::TooLarge));
        let endless = format!("GET /{}", "x".repeat(HEAD_BYTES_MAX));
        assert_eq!(parse(&endless).unwrap().outcome, Err(Refusal::TooLarge));
        let many = format!("GET /live HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(HEADERS_MAX + 1));
        assert_eq!(parse(&many).unwrap().outcome, Err(Refusal::TooLarge));
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged(bytes in proptest::collection::vec(any::<u8>(), 0..9000)) {
            let request = Request::parse(&bytes);
            prop_assert!(request.is_some() || bytes.len() <= HEAD_BYTES_MAX);
        }

        #[test]
        fn the_end_of_a_head_decides_and_nothing_before_it(cut in 0..37usize) {
            let text = b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n";
            prop_assert_eq!(Request::parse(&text[..cut]), None);
        }
    }
}
