//! What a page of ours looks like: for other reports that are to look the same.

pub use crate::result::plot::{Plot, Series, Span};

/// The style sheet, for light and dark and for print; it needs nothing else.
pub const STYLE: &str = include_str!("result/html/style.css");
