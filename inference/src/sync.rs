//! The atomics of admission: the standard library's, or loom's where its schedules are explored.

#[cfg(feature = "loom")]
pub(crate) use loom::sync::atomic;
#[cfg(not(feature = "loom"))]
pub(crate) use std::sync::atomic;
