//! A fault as its file tells it: what is to happen, where, and how often.

use super::act::{Act, Fatal};
use crate::tensor::{Tensor, TensorData};
use serde::Deserialize;
use std::time::Duration;

/// How long something hangs, and how long the slow take, unless the file says `ms`.
const HANG: Duration = Duration::from_secs(600);
const SLOW: Duration = Duration::from_secs(1);
/// Nothing that is told to wait waits longer.
const WAIT_MAX: Duration = Duration::from_secs(3600);
/// Memory that one run keeps, unless the file says `bytes`, and the most that it may say.
const LEAK_BYTES: usize = 1 << 20;
const LEAK_BYTES_MAX: usize = 1 << 30;
/// The most that a fault happens.
pub(super) const TIMES_MAX: u32 = 1000;
/// How a worker ends that is told to end at its start: no code that means something to the supervisor.
const END_CODE: u8 = 1;

/// Where a build or a run takes place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum At {
    /// At the load of a version, with its golden requests.
    Load,
    /// In a lane that answers clients, or is built again in place of one.
    Lane,
}

/// How often a fault happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Times {
    /// So often, each time counted.
    Limited(u32),
    /// As long as its file is there.
    Always,
}

/// Who is about to build or to run.
pub(super) struct Place<'a> {
    pub(super) at: At,
    pub(super) model: &'a str,
    /// What the run is given; nothing for a build.
    pub(super) inputs: &'a [Tensor],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Block,
    Spin,
    Error,
    Sticky,
    Wrong,
    Leak,
    Signal,
    Panic,
    SlowRun,
    SlowLoad,
    HangLoad,
    DieAtStart,
    CrashOn,
}

/// The file, as it was written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    kind: Kind,
    model: Option<String>,
    times: Option<u32>,
    at: Option<At>,
    ms: Option<u64>,
    ms_per_row: Option<u64>,
    #[serde(default)]
    always: bool,
    bytes: Option<usize>,
    signal: Option<Fatal>,
    value: Option<f64>,
    code: Option<u8>,
}

/// What is to happen, where, and how often.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Fault {
    kind: Kind,
    /// The model that it is for; any.
    model: Option<String>,
    /// Where; anywhere.
    at: Option<At>,
    /// Only for runs that hold this as the first element of a row.
    value: Option<f64>,
    /// How often it happens.
    pub(super) times: Times,
    /// What happens.
    pub(super) act: Act,
}

impl Fault {
    /// Reads a file.
    ///
    /// # Errors
    /// A sentence.
    pub(super) fn parse(text: &[u8]) -> Result<Fault, String> {
        let raw: Raw = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        let wait = |unless: Duration| {
            let wait = raw.ms.map_or(unless, Duration::from_millis);
            if wait > WAIT_MAX {
                return Err(format!("ms is at most {}", WAIT_MAX.as_millis()));
            }
            Ok(wait)
        };
        let act = match raw.kind {
            Kind::Block => Act::Sleep(wait(HANG)?),
            Kind::Spin => Act::Spin(wait(HANG)?),
            Kind::Error => Act::Error,
            Kind::Sticky => Act::Sticky,
            Kind::Wrong => Act::Wrong,
            Kind::Leak => match raw.bytes.unwrap_or(LEAK_BYTES) {
                bytes if bytes > LEAK_BYTES_MAX => {
                    return Err(format!("bytes is at most {LEAK_BYTES_MAX}"));
                }
                bytes => Act::Leak(bytes),
            },
            Kind::Signal => Act::Signal(raw.signal.ok_or("signal is missing")?),
            Kind::Panic => Act::Panic,
            Kind::SlowRun if raw.ms_per_row.is_some() => {
                Act::SleepPerRow(Duration::from_millis(raw.ms_per_row.unwrap_or_default()))
            }
            Kind::SlowRun | Kind::SlowLoad => Act::Sleep(wait(SLOW)?),
            Kind::HangLoad => Act::Sleep(wait(HANG)?),
            Kind::DieAtStart => Act::End(raw.code.unwrap_or(END_CODE)),
            Kind::CrashOn => Act::Signal(raw.signal.unwrap_or(Fatal::SIGSEGV)),
        };
        let value = match (raw.kind, raw.value) {
            (Kind::CrashOn, None) => return Err("value is missing".to_owned()),
            (Kind::CrashOn, value) => value,
            _ => None,
        };
        let times = match (raw.always, raw.times) {
            (true, None) => Times::Always,
            (true, Some(_)) => return Err("either times or always".to_owned()),
            (false, Some(times)) if !(1..=TIMES_MAX).contains(&times) => {
                return Err(format!("times is 1 to {TIMES_MAX}"));
            }
            (false, Some(times)) => Times::Limited(times),
            (false, None) if value.is_some() => Times::Limited(TIMES_MAX),
            (false, None) => Times::Limited(1),
        };
        let at = raw.at.or(match raw.kind {
            // A session that is slow to come is slow wherever it comes.
            Kind::SlowLoad | Kind::HangLoad | Kind::DieAtStart => None,
            // Clients are to meet it, not the golden requests of a load.
            _ => Some(At::Lane),
        });
        Ok(Fault { kind: raw.kind, model: raw.model, at, value, times, act })
    }

    /// Whether it happens when a session is built.
    pub(super) fn is_for_build(&self, place: &Place<'_>) -> bool {
        matches!(self.kind, Kind::SlowLoad | Kind::HangLoad) && self.is_for(place)
    }

    /// Whether it happens in a run.
    pub(super) fn is_for_run(&self, place: &Place<'_>) -> bool {
        !matches!(self.kind, Kind::SlowLoad | Kind::HangLoad | Kind::DieAtStart)
            && self.is_for(place)
            && self.value.is_none_or(|value| begins_with(place.inputs, value))
    }

    /// Whether it happens when a worker starts.
    pub(super) fn is_for_start(&self) -> bool {
        self.kind == Kind::DieAtStart
    }

    fn is_for(&self, place: &Place<'_>) -> bool {
        self.model.as_ref().is_none_or(|model| model == place.model)
            && self.at.is_none_or(|at| at == place.at)
    }
}

/// Rows of an input; what has no rows is one.
pub(super) fn rows(input: &Tensor) -> usize {
    input.shape().first().copied().unwrap_or(1).max(1)
}

/// Whether `value` is the first element of an input, or of any row of one: requests that share a run are rows of it.
fn begins_with(inputs: &[Tensor], value: f64) -> bool {
    inputs.iter().any(|input| {
        let rows = rows(input);
        let stride = (input.element_count() / rows).max(1);
        (0..input.element_count()).step_by(stride).any(|index| element(input, index) == Some(value))
    })
}

/// An element as a number; `None` for texts, and for what is not there.
fn element(tensor: &Tensor, index: usize) -> Option<f64> {
    use crate::datatype::Datatype as D;
    let TensorData::Raw(raw) = tensor.data() else { return None };
    let size = tensor.datatype().element_size()?;
    let bytes = raw.get(index * size..)?.get(..size)?;
    fn of<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
        bytes.try_into().ok()
    }
    let value = match tensor.datatype() {
        D::Bool | D::Uint8 => f64::from(*bytes.first()?),
        D::Int8 => f64::from(i8::from_le_bytes(of(bytes)?)),
        D::Uint16 => f64::from(u16::from_le_bytes(of(bytes)?)),
        D::Int16 => f64::from(i16::from_le_bytes(of(bytes)?)),
        D::Uint32 => f64::from(u32::from_le_bytes(of(bytes)?)),
        D::Int32 => f64::from(i32::from_le_bytes(of(bytes)?)),
        D::Uint64 => u64::from_le_bytes(of(bytes)?) as f64,
        D::Int64 => i64::from_le_bytes(of(bytes)?) as f64,
        D::Fp16 => half::f16::from_le_bytes(of(bytes)?).to_f64(),
        D::Bf16 => half::bf16::from_le_bytes(of(bytes)?).to_f64(),
        D::Fp32 => f64::from(f32::from_le_bytes(of(bytes)?)),
        D::Fp64 => f64::from_le_bytes(of(bytes)?),
        D::Bytes => return None,
    };
    Some(value)
}
