//! Bodies that come compressed: gzip, and deflate in the zlib container, which is what HTTP calls deflate.

use super::error::{CodecError, Problem};
use balm_inference::clip::clipped;
use bytes::Bytes;
use flate2::bufread::{MultiGzDecoder, ZlibDecoder};
use std::io::{BufRead, Read};

/// Name of the header that tells how a body is compressed.
const CONTENT_ENCODING: &str = "Content-Encoding";

/// The body as it was before compression; the same bytes where it was not compressed.
///
/// Memory stays within `max_bytes`, whatever the stream would grow to.
///
/// # Errors
/// [`Problem::UnknownEncoding`] (415), [`Problem::BodyTooLarge`] (413), [`Problem::BrokenStream`] (400).
pub fn decompress(
    body: Bytes,
    content_encoding: Option<&str>,
    max_bytes: usize,
) -> Result<Bytes, CodecError> {
    let name = content_encoding.unwrap_or_default().trim();
    if name.is_empty() || name.eq_ignore_ascii_case("identity") {
        return match body.len() > max_bytes {
            true => Err(too_large(max_bytes, false)),
            false => Ok(body),
        };
    }
    let mut left = &body[..];
    let plain = if name.eq_ignore_ascii_case("gzip") || name.eq_ignore_ascii_case("x-gzip") {
        read_bounded(MultiGzDecoder::new(&mut left), "gzip", max_bytes)?
    } else if name.eq_ignore_ascii_case("deflate") {
        read_bounded(ZlibDecoder::new(&mut left), "deflate (zlib)", max_bytes)?
    } else {
        let problem = Problem::UnknownEncoding { found: clipped(name) };
        return Err(CodecError::new(CONTENT_ENCODING, problem));
    };
    // A reader of slices cannot fail; what it still holds was never part of the stream.
    if left.fill_buf().is_ok_and(|rest| !rest.is_empty()) {
        let detail = format!("{} bytes follow its end", left.len());
        return Err(broken("deflate (zlib)", detail));
    }
    Ok(Bytes::from(plain))
}

fn read_bounded(
    decoder: impl Read,
    encoding: &'static str,
    max_bytes: usize,
) -> Result<Vec<u8>, CodecError> {
    let mut plain = Vec::new();
    // One byte more than allowed tells "too large" from "just fits".
    let limit = u64::try_from(max_bytes).unwrap_or(u64::MAX).saturating_add(1);
    match decoder.take(limit).read_to_end(&mut plain) {
        Err(error) => Err(broken(encoding, error.to_string())),
        Ok(_) if plain.len() > max_bytes => Err(too_large(max_bytes, true)),
        Ok(_) => Ok(plain),
    }
}

fn too_large(limit: usize, compressed: bool) -> CodecError {
    CodecError::new("", Problem::BodyTooLarge { limit, compressed })
}

fn broken(encoding: &'static str, detail: String) -> CodecError {
    CodecError::new("", Problem::BrokenStream { encoding, detail })
}
