//! What was read of a request, kept for those that say the same.
//!
//! Tensors in binary form are described in JSON, which costs more to read than a small model takes to run. Most clients
//! write the same description each time: only the bytes after it differ. So what came of it (which input lies where, which
//! outputs are wanted and how) is kept beside the version, and a request whose description is the same to the byte is read
//! by it. Reading depends on nothing else: not on the bytes of the tensors, and the contract and settings of a version do
//! not change.

use super::Prepared;
use crate::http::answer::Form;
use arc_swap::ArcSwap;
use balm_inference::datatype::Datatype;
use balm_inference::tensor::{Dimensions, Tensor, TensorData};
use balm_inference::version::Serving;
use bytes::Bytes;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Descriptions that are kept for one version. The oldest makes room.
const KEPT_MAX: usize = 8;
/// The longest that is kept, bytes.
const JSON_BYTES_MAX: usize = 2048;
/// Descriptions that were met once and are remembered by their hash.
const MET_MAX: usize = 16;

/// The descriptions that one version knows.
#[derive(Default)]
pub(super) struct Known {
    kept: ArcSwap<Vec<Arc<Description>>>,
    /// A client that writes something new each time must not push out what others write. So a description is kept when it
    /// comes again, and these are the hashes of those that came once.
    met: [AtomicU64; MET_MAX],
}

struct Description {
    /// The header that tells the length of `json`, as it was written.
    length: Box<str>,
    json: Box<[u8]>,
    /// Bytes of the whole body.
    body_bytes: usize,
    /// In the order of the graph.
    inputs: Vec<Part>,
    timeout: Option<Duration>,
    priority: Option<u64>,
    form: Arc<Form>,
}

/// Where in the body an input lies, and what it is.
struct Part {
    datatype: Datatype,
    shape: Dimensions,
    bytes: Range<usize>,
}

impl Known {
    /// What is known of requests to `serving`.
    pub(super) fn of(serving: &Serving) -> Option<&Self> {
        serving.beside()
    }

    /// The request in `body`, if its description is known. `length` is the header that tells how long that is.
    pub(super) fn read(&self, length: &str, body: &Bytes) -> Option<Prepared> {
        let kept = self.kept.load();
        let description = kept.iter().find(|kept| kept.is_of(length, body))?;
        let tensor = |part: &Part| {
            Tensor::raw(part.datatype, part.shape.clone(), body.slice(part.bytes.clone())).ok()
        };
        Some(Prepared {
            inputs: description.inputs.iter().map(tensor).collect::<Option<_>>()?,
            timeout: description.timeout,
            priority: description.priority,
            form: Arc::clone(&description.form),
            bytes: body.len() as u64,
        })
    }

    /// Keeps what `body` was read as, when it says what another has said before and can be read by it.
    pub(super) fn learn(&self, length: &str, body: &Bytes, prepared: &Prepared) {
        let Some(description) = Description::of(length, body, prepared) else { return };
        let mut hasher = DefaultHasher::new();
        description.json.hash(&mut hasher);
        let hash = hasher.finish();
        let place = &self.met[(hash % MET_MAX as u64) as usize];
        if place.swap(hash, Ordering::Relaxed) != hash {
            return;
        }
        let description = Arc::new(description);
        self.kept.rcu(|kept| {
            let newest = kept.len().saturating_sub(KEPT_MAX - 1);
            let others = kept[newest..].iter().filter(|other| !other.is_of(length, body));
            others.chain([&description]).cloned().collect::<Vec<_>>()
        });
    }
}

impl Description {
    /// `None` where the tensors are not just pieces of the body, or the description is long or of one request alone.
    fn of(length: &str, body: &Bytes, prepared: &Prepared) -> Option<Self> {
        let Prepared { inputs, timeout, priority, form, .. } = prepared;
        if form.id.is_some() {
            return None;
        }
        let inputs =
            inputs.iter().map(|input| Part::of(input, body)).collect::<Option<Vec<_>>>()?;
        // The description ends where the first tensor begins; without tensors there is nothing to gain.
        let end = inputs.iter().map(|part| part.bytes.start).min()?;
        let json = body.get(..end).filter(|json| json.len() <= JSON_BYTES_MAX)?;
        let kept = Form { beginning: Some(OnceLock::new()), ..Form::clone(form) };
        Some(Description {
            length: length.into(),
            json: json.into(),
            body_bytes: body.len(),
            inputs,
            timeout: *timeout,
            priority: *priority,
            form: Arc::new(kept),
        })
    }

    fn is_of(&self, length: &str, body: &[u8]) -> bool {
        body.len() == self.body_bytes && body.starts_with(&self.json) && *self.length == *length
    }
}

impl Part {
    /// `None` where `input` was made of the body's bytes and is not a piece of them.
    fn of(input: &Tensor, body: &Bytes) -> Option<Self> {
        let TensorData::Raw(data) = input.data() else { return None };
        // A byte that C calls true may be another than 1, and is made 1.
        if input.datatype() == Datatype::Bool || data.is_empty() {
            return None;
        }
        let start = (data.as_ptr() as usize).checked_sub(body.as_ptr() as usize)?;
        let bytes = start..start.checked_add(data.len())?;
        (bytes.end <= body.len()).then(|| Part {
            datatype: input.datatype(),
            shape: Dimensions::from_slice(input.shape()),
            bytes,
        })
    }
}

#[cfg(test)]
mod tests;
