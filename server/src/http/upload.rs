//! Bodies of requests that are refused before they are read.

use axum::body::{Body, HttpBody};
use http_body_util::BodyExt;
use std::time::Duration;

/// Bytes that are read and thrown away for the sake of a readable answer.
const DISCARD_BYTES_MAX: usize = 64 * 1024;
/// How long a refused client may take to send them.
const DISCARD_TIME_MAX: Duration = Duration::from_millis(50);

/// Reads what is left of a small body, within a bound of bytes and time. False when not all of it was read.
///
/// When the server closes while a client still sends, the client sees a reset and never our answer. Without a bound,
/// refused clients would pile up here instead.
pub(super) async fn discard(mut body: Body) -> bool {
    if body.is_end_stream() {
        return true;
    }
    if body.size_hint().lower() > DISCARD_BYTES_MAX as u64 {
        return false;
    }
    let drain = async {
        let mut left = DISCARD_BYTES_MAX;
        loop {
            match body.frame().await {
                None => return true,
                Some(Err(_)) => return false,
                Some(Ok(frame)) => {
                    let size = frame.data_ref().map_or(0, bytes::Bytes::len);
                    match left.checked_sub(size) {
                        Some(rest) => left = rest,
                        None => return false,
                    }
                }
            }
        }
    };
    tokio::time::timeout(DISCARD_TIME_MAX, drain).await.unwrap_or(false)
}
