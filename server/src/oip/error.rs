//! What can be wrong with a body: where, what, and what would be right.

use balm_inference::datatype::{Datatype, UnknownDatatype};
use std::fmt;

/// How an error maps to a status; the HTTP layer matches on this alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The client sent something wrong: 400.
    Malformed,
    /// More than a limit allows: 413.
    TooLarge,
    /// A content encoding that is not known here: 415.
    UnsupportedEncoding,
    /// Part of the protocol that is not served here: 501.
    NotImplemented,
}

/// A body that cannot be decoded, or an answer that cannot be encoded as it was asked for.
///
/// The text names the field first (`inputs[1].shape[0]: …`), then the problem, then what would be right.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{}{problem}", FieldPrefix(field))]
pub struct CodecError {
    field: String,
    // Boxed: errors are rare, and results that carry them should stay small.
    problem: Box<Problem>,
}

struct FieldPrefix<'a>(&'a str);

impl fmt::Display for FieldPrefix<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            "" => Ok(()),
            field => write!(f, "{field}: "),
        }
    }
}

impl CodecError {
    pub(crate) fn new(field: impl Into<String>, problem: Problem) -> Self {
        CodecError { field: field.into(), problem: Box::new(problem) }
    }

    /// The field at fault, for example `inputs[0].data[7]`; empty when it is the body as a whole.
    pub fn field(&self) -> &str {
        &self.field
    }

    /// What is wrong with it.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// Which status it deserves.
    pub fn kind(&self) -> ErrorKind {
        self.problem.kind()
    }
}

/// What is wrong with a field. All are the client's fault; none is mended by sending the same again.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The JSON grammar is broken.
    #[error("not valid JSON: {detail}")]
    NotJson {
        /// The parser's words, with line and column.
        detail: String,
    },
    /// Bytes follow the JSON and no header says where it ends.
    #[error(
        "not valid JSON: {detail}; binary tensors after the JSON need the header Inference-Header-Content-Length"
    )]
    TrailingBytes {
        /// The parser's words, with line and column.
        detail: String,
    },
    /// `NaN` or `Infinity` as Python's `json` writes them.
    #[error(
        "JSON has no NaN and no Infinity; send this tensor as binary data (parameters.binary_data_size)"
    )]
    NanLiteral,
    /// A number too large for a double, or for the single it should become.
    #[error("the number is too large for {expected}")]
    NumberTooLarge {
        /// What it should have been.
        expected: &'static str,
    },
    /// Another JSON type was expected.
    #[error("{detail}")]
    WrongType {
        /// What was found and what was expected.
        detail: String,
    },
    /// A member that must be there is not.
    #[error("is missing; {hint}")]
    Missing {
        /// What it should be.
        hint: &'static str,
    },
    /// A member stands twice in one object.
    #[error("appears more than once")]
    Repeated,
    /// Two members that exclude each other.
    #[error("give either {one} or {other}, not both")]
    Exclusive {
        /// The first.
        one: &'static str,
        /// The second.
        other: &'static str,
    },
    /// Longer than a limit allows.
    #[error("more than {limit} {what}")]
    TooMany {
        /// The limit.
        limit: usize,
        /// Of what, in the plural.
        what: &'static str,
    },
    /// Decoded, the tensors would take more than the limit.
    #[error("the decoded tensors would take more than the limit of {limit} bytes")]
    DecodedTooLarge {
        /// `DecodeLimits::max_decoded_bytes`.
        limit: usize,
    },
    /// A dimension below zero.
    #[error(
        "{found} is not a size; a request gives the real size of each dimension, -1 stands in metadata alone"
    )]
    NegativeDimension {
        /// As it was sent.
        found: i64,
    },
    /// A dimension with a fraction or an exponent.
    #[error("{found:?} is not a whole number")]
    FractionalDimension {
        /// As it was sent.
        found: f64,
    },
    /// A dimension beyond 64 bits.
    #[error("the dimension is too large to be addressed")]
    HugeDimension,
    /// A product of dimensions that overflows.
    #[error("{shape:?} has more elements than can be addressed")]
    Overflow {
        /// As it was sent.
        shape: Vec<usize>,
    },
    /// A name that is no datatype.
    #[error(transparent)]
    Datatype(#[from] UnknownDatatype),
    /// FP16 or BF16 in JSON.
    #[error(
        "{datatype} has no JSON form; send it as binary data (parameters.binary_data_size and the header Inference-Header-Content-Length)"
    )]
    HalfInput {
        /// FP16 or BF16.
        datatype: Datatype,
    },
    /// An FP16 or BF16 output asked for in JSON.
    #[error(
        "{datatype} has no JSON form; ask for it as binary data (parameters.binary_data of the output, or parameters.binary_data_output)"
    )]
    HalfOutput {
        /// FP16 or BF16.
        datatype: Datatype,
    },
    /// An integer outside its datatype.
    #[error("{found} is out of range for {datatype} ({low} to {high})")]
    OutOfRange {
        /// As it was sent.
        found: String,
        /// The input's datatype.
        datatype: Datatype,
        /// Smallest value.
        low: i128,
        /// Largest value.
        high: i128,
    },
    /// A number with a fraction where a whole one belongs.
    #[error("{found:?} is not a whole number, as {datatype} needs")]
    NotWhole {
        /// As it was sent.
        found: f64,
        /// The input's datatype.
        datatype: Datatype,
    },
    /// Fewer or more elements than the shape asks for.
    #[error("holds {found} elements, shape {shape:?} asks for {expected}")]
    ElementCount {
        /// How many there are; "more than …" where counting stopped.
        found: Count,
        /// As it was sent.
        shape: Vec<usize>,
        /// The product of the shape.
        expected: usize,
    },
    /// One nested array is longer or shorter than its dimension.
    #[error("holds {found} elements, dimension {axis} of the shape is {expected}")]
    RowLength {
        /// How many there are.
        found: Count,
        /// Which dimension, from 0.
        axis: usize,
        /// Its size.
        expected: usize,
    },
    /// The row form's arrays differ in length.
    #[error("holds {found} elements, where the arrays beside it hold {expected}")]
    Ragged {
        /// How many there are.
        found: Count,
        /// How many the first had.
        expected: usize,
    },
    /// A header that is not a decimal number.
    #[error("{found:?} is not a number; it is the length of the JSON part in bytes")]
    HeaderNotNumber {
        /// As it was sent, clipped.
        found: String,
    },
    /// The JSON part cannot be longer than the body.
    #[error("says {claimed} bytes, the body has {body}")]
    HeaderBeyondBody {
        /// What the header says.
        claimed: usize,
        /// Length of the body, after decompression.
        body: usize,
    },
    /// `binary_data_size` contradicts shape and datatype.
    #[error("is {claimed}, shape {shape:?} of {datatype} needs {expected} bytes")]
    BinarySize {
        /// `binary_data_size`.
        claimed: usize,
        /// As it was sent.
        shape: Vec<usize>,
        /// As it was sent.
        datatype: Datatype,
        /// Elements × element size.
        expected: usize,
    },
    /// The body ends before the tensor does.
    #[error("is {claimed}, only {left} bytes are left in the body after the JSON part")]
    BinaryBeyondBody {
        /// `binary_data_size`.
        claimed: usize,
        /// Bytes of the body that no earlier input took.
        left: usize,
    },
    /// Bytes that no input claims.
    #[error(
        "{left} bytes of the body are left over after the JSON part and the binary inputs; the sizes must add up to the body"
    )]
    LeftOver {
        /// How many.
        left: usize,
    },
    /// The lengths inside a binary `BYTES` tensor do not work out.
    #[error(
        "element {index} {problem}; each element is a 4-byte little-endian length and that many bytes"
    )]
    BytesElement {
        /// Row-major index of the element.
        index: usize,
        /// What is wrong with it.
        problem: BytesProblem,
    },
    /// A raw request for a model that cannot take one.
    #[error("a request without JSON (Inference-Header-Content-Length: 0) needs {needed}")]
    RawNotPossible {
        /// What the model would need to be.
        needed: &'static str,
    },
    /// A raw request whose length fits no shape of the model.
    #[error(
        "a request without JSON has {found} bytes; {datatype} of shape {shape:?} needs {needed}"
    )]
    RawSize {
        /// Length of the body.
        found: usize,
        /// The input's datatype.
        datatype: Datatype,
        /// The declared shape, −1 for the dimension that varies.
        shape: Vec<i64>,
        /// For example "a multiple of 16".
        needed: String,
    },
    /// A parameter that only the server may set.
    #[error("names that begin with triton_ are reserved for the server; leave it out")]
    ReservedParameter,
    /// A part of the protocol that is not here.
    #[error("{what} is not supported here; {instead}")]
    NotSupported {
        /// What was asked for.
        what: &'static str,
        /// What to do instead.
        instead: &'static str,
    },
    /// Classification of something that has no order, or of no rows.
    #[error("classification needs a numeric tensor, this one is {datatype}")]
    ClassifyDatatype {
        /// The output's datatype.
        datatype: Datatype,
    },
    /// A string that is not UTF-8 cannot stand in JSON.
    #[error("element {index} is not UTF-8; ask for this output as binary data")]
    NotUtf8 {
        /// Row-major index of the element.
        index: usize,
    },
    /// An input that the model does not have (row and column form).
    #[error("unknown input; this model takes {known}")]
    UnknownInput {
        /// The model's inputs.
        known: String,
    },
    /// An input without dimensions has no rows.
    #[error(
        "this input is a scalar and has no rows; ask with \"inputs\" rather than \"instances\""
    )]
    NoRows,
    /// Outputs that cannot be cut into rows.
    #[error(
        "output {name:?} has shape {shape:?}, which cannot be cut into {rows} predictions; ask with \"inputs\" rather than \"instances\""
    )]
    NotRows {
        /// The output.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
        /// How many instances there were.
        rows: usize,
    },
    /// A content encoding that is not known here.
    #[error("{found:?} is not known here; send gzip, deflate (the zlib container) or identity")]
    UnknownEncoding {
        /// As it was sent, clipped.
        found: String,
    },
    /// The body, decompressed, exceeds the limit.
    #[error("the body takes more than the limit of {limit} bytes{}", when_decompressed(.compressed))]
    BodyTooLarge {
        /// The limit in bytes.
        limit: usize,
        /// Whether it came compressed.
        compressed: bool,
    },
    /// The compressed stream is broken or ends too early.
    #[error("the {encoding} stream is broken or cut short: {detail}")]
    BrokenStream {
        /// Which encoding.
        encoding: &'static str,
        /// The decompressor's words.
        detail: String,
    },
}

impl Problem {
    /// Which status the problem deserves.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Problem::DecodedTooLarge { .. } | Problem::BodyTooLarge { .. } => ErrorKind::TooLarge,
            Problem::UnknownEncoding { .. } => ErrorKind::UnsupportedEncoding,
            Problem::NotSupported { .. } => ErrorKind::NotImplemented,
            Problem::NotJson { .. }
            | Problem::TrailingBytes { .. }
            | Problem::NanLiteral
            | Problem::NumberTooLarge { .. }
            | Problem::WrongType { .. }
            | Problem::Missing { .. }
            | Problem::Repeated
            | Problem::Exclusive { .. }
            | Problem::TooMany { .. }
            | Problem::NegativeDimension { .. }
            | Problem::FractionalDimension { .. }
            | Problem::HugeDimension
            | Problem::Overflow { .. }
            | Problem::Datatype(_)
            | Problem::HalfInput { .. }
            | Problem::HalfOutput { .. }
            | Problem::OutOfRange { .. }
            | Problem::NotWhole { .. }
            | Problem::ElementCount { .. }
            | Problem::RowLength { .. }
            | Problem::Ragged { .. }
            | Problem::HeaderNotNumber { .. }
            | Problem::HeaderBeyondBody { .. }
            | Problem::BinarySize { .. }
            | Problem::BinaryBeyondBody { .. }
            | Problem::LeftOver { .. }
            | Problem::BytesElement { .. }
            | Problem::RawNotPossible { .. }
            | Problem::RawSize { .. }
            | Problem::ReservedParameter
            | Problem::ClassifyDatatype { .. }
            | Problem::NotUtf8 { .. }
            | Problem::UnknownInput { .. }
            | Problem::NoRows
            | Problem::NotRows { .. }
            | Problem::BrokenStream { .. } => ErrorKind::Malformed,
        }
    }
}

fn when_decompressed(compressed: &bool) -> &'static str {
    if *compressed { " once decompressed" } else { "" }
}

/// A number of elements, or a bound on it where counting stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Exactly so many.
    Exactly(usize),
    /// More; the rest was not counted.
    MoreThan(usize),
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Count::Exactly(count) => write!(f, "{count}"),
            Count::MoreThan(count) => write!(f, "more than {count}"),
        }
    }
}

/// What is wrong with one element of a binary `BYTES` tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BytesProblem {
    /// Fewer than 4 bytes are left where a length belongs.
    #[error("is cut short: {0} bytes are left where its length belongs")]
    NoLength(usize),
    /// The length exceeds what is left.
    #[error("says it is {0} bytes long, only {1} are left")]
    BeyondEnd(u32, usize),
}
