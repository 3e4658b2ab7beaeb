//! Who asks, and how much it matters: what admission wants to know from the head of a request.

use super::error::ApiError;
use super::headers::{Head, REQUEST_CLASS};
use balm_inference::admission::Class;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

/// The address at the other end of the connection. Absent on unix sockets, where everybody is the same client.
///
/// As a hash, made once for all requests of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Peer(u64);

impl Peer {
    /// Who is at `address`.
    pub(super) fn at(address: IpAddr) -> Self {
        Peer(hash(&address))
    }
}

fn hash(key: &(impl Hash + ?Sized)) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}

/// A hash of what the client is known by: the configured header where the request has it, else its address.
pub(super) fn client(head: &Head<'_>, peer: Option<Peer>) -> u64 {
    match (head.client, peer) {
        (Some(key), _) => hash(key.as_bytes()),
        (None, Some(Peer(hash))) => hash,
        (None, None) => 0,
    }
}

/// The class that the request claims; `None` when it says nothing.
pub(super) fn requested_class(head: &Head<'_>) -> Result<Option<Class>, ApiError> {
    let Some(value) = head.class else { return Ok(None) };
    let word = value.to_str().unwrap_or("(not ASCII)");
    word.parse().map(Some).map_err(|unknown| ApiError::Header {
        name: REQUEST_CLASS,
        problem: format!("{:?} is {unknown}", word.chars().take(64).collect::<String>()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::{HeaderMap, HeaderName};

    #[test]
    fn the_header_counts_before_the_address_where_it_is_configured() {
        let header = HeaderName::from_static("x-client-id");
        let of = |key: Option<&str>, peer: Option<[u8; 4]>, configured: bool| {
            let mut headers = HeaderMap::new();
            if let Some(key) = key {
                headers.insert("x-client-id", key.parse().unwrap());
            }
            let peer = peer.map(|address| Peer::at(address.into()));
            client(&Head::of(&headers, configured.then_some(&header)), peer)
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
        assert_eq!(requested_class(&Head::of(&headers, None)).unwrap(), None);
        headers.insert(REQUEST_CLASS, "Best-Effort".parse().unwrap());
        assert_eq!(requested_class(&Head::of(&headers, None)).unwrap(), Some(Class::BestEffort));
        headers.insert(REQUEST_CLASS, "urgent".parse().unwrap());
        assert_eq!(
            requested_class(&Head::of(&headers, None)).unwrap_err().to_string(),
            "header x-request-class: \"urgent\" is none of critical, default, sheddable, best-effort"
        );
    }
}
