//! Compressed bodies, whole, cut short and malicious.

use super::*;
use crate::oip::ErrorKind;
use crate::oip::encoding::decompress;
use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use std::io::Write;

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn zlib(plain: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn open(body: &[u8], encoding: &str, max: usize) -> Result<Bytes, CodecError> {
    decompress(Bytes::copy_from_slice(body), Some(encoding), max)
}

#[test]
fn every_known_encoding() {
    let plain = b"some text, some text, some text";
    for (name, body) in [
        ("gzip", gzip(plain)),
        ("GZIP", gzip(plain)),
        ("x-gzip", gzip(plain)),
        (" deflate ", zlib(plain)),
        ("identity", plain.to_vec()),
        ("", plain.to_vec()),
    ] {
        assert_eq!(open(&body, name, plain.len()).unwrap(), &plain[..], "{name}");
        let error = open(&body, name, plain.len() - 1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge, "{name}");
    }
    assert_eq!(decompress(Bytes::from_static(plain), None, 99).unwrap(), &plain[..]);
    let members = [gzip(b"one "), gzip(b"two")].concat();
    assert_eq!(open(&members, "gzip", 99).unwrap(), &b"one two"[..]);
    assert_eq!(open(&gzip(b""), "gzip", 0).unwrap(), &b""[..]);
}

#[test]
fn a_bomb_stays_within_the_limit() {
    let plain = vec![0; 64 << 20];
    for (name, bomb) in [("gzip", gzip(&plain)), ("deflate", zlib(&plain))] {
        assert!(bomb.len() < 100_000);
        let error = open(&bomb, name, 1 << 16).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the body takes more than the limit of 65536 bytes once decompressed"
        );
    }
}

#[test]
fn broken_streams() {
    let plain = b"some text that is long enough to be cut anywhere";
    for (name, body) in [("gzip", gzip(plain)), ("deflate", zlib(plain))] {
        for end in 0..body.len() {
            let error = open(&body[..end], name, 1000).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Malformed, "{name} cut at {end}");
        }
        let mut trailing = body.clone();
        trailing.extend_from_slice(b"left over");
        assert_eq!(open(&trailing, name, 1000).unwrap_err().kind(), ErrorKind::Malformed);
        let mut flipped = body;
        *flipped.last_mut().unwrap() ^= 1;
        let error = open(&flipped, name, 1000).unwrap_err().to_string();
        assert!(error.contains("stream is broken or cut short"), "{error}");
    }
    // Deflate without its container is a common mistake of hand-made clients.
    let mut bare = DeflateEncoder::new(Vec::new(), Compression::best());
    bare.write_all(plain).unwrap();
    assert!(open(&bare.finish().unwrap(), "deflate", 1000).is_err());
}

#[test]
fn unknown_encodings() {
    for name in ["br", "zstd", "gzip, deflate"] {
        let error = open(b"x", name, 1000).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnsupportedEncoding);
        assert_eq!(
            error.to_string(),
            format!(
                "Content-Encoding: {name:?} is not known here; send gzip, deflate (the zlib container) or identity"
            )
        );
    }
}
