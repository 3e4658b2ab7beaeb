//! What happens around every request: its id, its count, its line in the access log.

use super::State;
use super::error::{self, Panicked};
use super::headers::REQUEST_ID;
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Longer ids are replaced: they go into logs and answers.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// Id of one request, the client's or our own.
///
/// Kept as the header value that goes back, which is cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct RequestId(HeaderValue);

impl RequestId {
    /// Text.
    pub(super) fn as_str(&self) -> &str {
        // Both constructors see to it that it is ASCII.
        self.0.to_str().unwrap_or_default()
    }

    /// The client's id where it is fit for a log line, else a new one.
    fn of(given: Option<&HeaderValue>) -> Self {
        match given {
            Some(given)
                if !given.is_empty()
                    && given.len() <= REQUEST_ID_BYTES_MAX
                    && given.as_bytes().iter().all(u8::is_ascii_graphic) =>
            {
                RequestId(given.clone())
            }
            _ => RequestId::fresh(),
        }
    }

    /// Unique within the process by its counter, and between processes by the time of the first use.
    fn fresh() -> Self {
        static BORN: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let born = *BORN.get_or_init(|| {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
                ^ u64::from(std::process::id()) << 40
        });
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        // Most requests get one, and formatting would take a tenth of what their admission does.
        let mut text = [0; 2 * HEX_DIGITS_MAX + 1];
        let from = put_hex(&mut text, next);
        let from = from.saturating_sub(1);
        text[from] = b'-';
        let from = put_hex(&mut text[..from], born);
        RequestId(HeaderValue::from_bytes(&text[from..]).unwrap_or(HeaderValue::from_static("-")))
    }
}

/// Hexadecimal digits of a number of 64 bits.
const HEX_DIGITS_MAX: usize = 16;

/// Writes `number` in lower-case hexadecimal to the end of `room`, as far as that goes. Gives where it begins.
fn put_hex(room: &mut [u8], mut number: u64) -> usize {
    let mut from = room.len();
    for digit in room.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(number % 16) as usize];
        from -= 1;
        number /= 16;
        if number == 0 {
            break;
        }
    }
    from
}

/// When the head of the request was read; deadlines count from here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrived(pub(super) Instant);

/// One request as it is seen from outside: begun with its head, ended with its answer.
pub(super) struct Observation {
    pub(super) id: RequestId,
    pub(super) arrived: Arrived,
    /// Kept only where a line is going to be written.
    logged: Option<(Method, String)>,
}

impl Observation {
    /// The head of a request was read; `given` is the id that it brought.
    pub(super) fn begin(
        state: &State,
        method: &Method,
        path: &str,
        given: Option<&HeaderValue>,
    ) -> Self {
        Observation {
            arrived: Arrived(Instant::now()),
            id: RequestId::of(given),
            logged: state.0.access_log.then(|| (method.clone(), path.to_owned())),
        }
    }

    /// The answer is there and has been counted.
    pub(super) fn end(self, response: &mut Response) {
        if let Some((method, path)) = self.logged {
            tracing::info!(
                target: "balm::access",
                %method,
                path,
                status = response.status().as_u16(),
                duration_us = self.arrived.0.elapsed().as_micros(),
                request_id = self.id.as_str(),
                "request"
            );
        }
        response.headers_mut().insert(REQUEST_ID, self.id.0);
    }
}

/// The outermost layer of the router.
pub(super) async fn observe(
    axum::extract::State(state): axum::extract::State<State>,
    mut request: Request,
    next: Next,
) -> Response {
    let given = request.headers().get(REQUEST_ID);
    let observation = Observation::begin(&state, request.method(), request.uri().path(), given);
    request.extensions_mut().insert(observation.id.clone());
    request.extensions_mut().insert(observation.arrived);
    let route = request.extensions().get::<MatchedPath>().cloned();
    let mut response = next.run(request).await;
    if response.extensions().get::<Panicked>().is_some() {
        response = error::panicked(&observation.id);
    }
    let route = route.as_ref().map_or("none", MatchedPath::as_str);
    state.0.metrics.count(route, response.status().as_u16());
    observation.end(&mut response);
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn hexadecimal_is_as_others_write_it() {
        for number in [0, 1, 9, 10, 15, 16, 255, 0xdead_beef, u64::MAX - 1, u64::MAX] {
            let mut room = [0; HEX_DIGITS_MAX];
            let from = put_hex(&mut room, number);
            assert_eq!(std::str::from_utf8(&room[from..]).unwrap(), format!("{number:x}"));
        }
    }

    #[test]
    fn fresh_ids_differ_and_can_be_written() {
        let ids: Vec<RequestId> = (0..1000).map(|_| RequestId::fresh()).collect();
        let texts: HashSet<&str> = ids.iter().map(RequestId::as_str).collect();
        assert_eq!(texts.len(), ids.len());
        for text in texts {
            let (born, next) = text.split_once('-').unwrap();
            assert!(u64::from_str_radix(born, 16).is_ok() && u64::from_str_radix(next, 16).is_ok());
        }
    }
}
