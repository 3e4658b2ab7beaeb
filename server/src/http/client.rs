//! Who asks, and how much it matters: what admission wants to know from the head of a request.

use super::error::ApiError;
use axum::http::{HeaderMap, HeaderName};
use balm_inference::admission::Class;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

/// Header that says how much a request matters.
static REQUEST_CLASS: HeaderName = HeaderName::from_static("x-request-class");

/// The address at the other end of the connection. Absent on unix sockets, where everybody is the same client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Peer(pub(super) IpAddr);

/// A hash of what the client is known by: the configured header where the request has it, else its address.
pub(super) fn client(headers: &HeaderMap, peer: Option<Peer>, header: Option<&HeaderName>) -> u64 {
    let mut hasher = DefaultHasher::new();
    match header.and_then(|name| headers.get(name)) {
        Some(key) => key.as_bytes().hash(&mut hasher),
        None => peer.hash(&mut hasher),
    }
    hasher.finish()
}

/// The class that the request claims; `None` when it says nothing.
pub(super) fn requested_class(headers: &HeaderMap) -> Result<Option<Class>, ApiError> {
    let Some(value) = headers.get(&REQUEST_CLASS) else { return Ok(None) };
    let word = value.to_str().unwrap_or("(not ASCII)");
    word.parse().map(Some).map_err(|unknown| ApiError::Header {
        name: REQUEST_CLASS.as_str(),
        problem: format!("{:?} is {unknown}", word.chars().take(64).collect::<String>()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_counts_before_the_address_where_it_is_configured() {
        let header = HeaderName::from_static("x-client-id");
        let of = |key: Option<&str>, peer: Option<[u8; 4]>, configured: bool| {
            let mut headers = HeaderMap::new();
            if let Some(key) = key {
                headers.insert("x-client-id", key.parse().unwrap());
            }
            let peer = peer.map(|address| Peer(address.into()));
            client(&headers, peer, configured.then_some(&header))
        };
        let (here, there) = (Some([127, 0, 0, 1]), Some([10, 0, 0, 1]));
        assert_eq!(of(Some("a"), here, true), of(Some("a"), there, true));
        assert_ne!(of(Some("a"), here, true), of(Some("b"), here, true));
        assert_eq!(of(Some("a"), here, false), of(Some("b"), here, false));
        assert_ne!(of(None, here, true), of(None, there, true));
        assert_eq!(of(None, None, true), of(None, None, false));
    }

    #[test]
    fn classes_are_words() {
        let mut headers = HeaderMap::new();
        assert_eq!(requested_class(&headers).unwrap(), None);
        headers.insert(&REQUEST_CLASS, "Best-Effort".parse().unwrap());
        assert_eq!(requested_class(&headers).unwrap(), Some(Class::BestEffort));
        headers.insert(&REQUEST_CLASS, "urgent".parse().unwrap());
        assert_eq!(
            requested_class(&headers).unwrap_err().to_string(),
            "header x-request-class: \"urgent\" is none of critical, default, sheddable, best-effort"
        );
    }
}
