//! Versions that did harm, remembered by digest across workers.
//!
//! A version whose golden requests fail is found out by each worker that loads it; one that makes the worker crash is found out
//! by none, for each of them is gone before it can tell. So it is the supervisor that remembers, and each new worker is told
//! what not to try. A version comes back when its bytes are others, or when somebody asks for its load and it proves itself.
//!
//! Who is to blame for a crash is not known, so it is guessed with care. A load under way is the first suspect. Where none is, only
//! a version that took over from another less than ten minutes ago is: a version that has served from the start has nothing to go
//! back to that is known to be better, and a request may be what crashes it.

use crate::report::{HealthReport, VersionReport};
use crate::respawn::Cause;
use crate::state::ModelState;
use serde::{Deserialize, Serialize};

/// Crashes with which a version is quarantined.
pub const CRASHES_MAX: u32 = 3;
/// For so long after it took over a version is on trial, milliseconds.
pub const TRIAL_MS: u64 = 600_000;
/// Versions that are remembered at most; the oldest go first. They are in the greeting of each worker.
pub const QUARANTINED_MAX: usize = 32;
/// Characters of a reason that are remembered.
pub const REASON_CHARS_MAX: usize = 256;
/// Versions that are watched at most; the oldest go first.
pub const WATCHED_MAX: usize = 1_024;

/// A version that is not to be tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    /// Its model.
    pub model: String,
    /// Its number, for people.
    pub version: u64,
    /// What it is known by, together with its model: SHA-256 in lower-case hex.
    pub digest: String,
    /// Why, in a sentence without its full stop.
    pub reason: String,
    /// Since when, in milliseconds of Unix time.
    pub at_ms: u64,
}

impl Quarantined {
    /// Whether it is these bytes of this model.
    pub fn is(&self, model: &str, digest: &str) -> bool {
        self.model == model && self.digest == digest
    }
}

/// A version that has been seen.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Watched {
    model: String,
    digest: String,
    crashes: u32,
    /// Until when it is on trial. `None`: not yet, or not any more.
    trial_until_ms: Option<u64>,
    /// Whether it has served.
    served: bool,
}

/// What is remembered. Times in milliseconds of a clock that outlives workers, unless it is said otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quarantine {
    quarantined: Vec<Quarantined>,
    watched: Vec<Watched>,
}

impl Quarantine {
    /// With what was remembered before.
    pub fn new(mut quarantined: Vec<Quarantined>) -> Self {
        let surplus = quarantined.len().saturating_sub(QUARANTINED_MAX);
        quarantined.drain(..surplus);
        for one in &mut quarantined {
            one.reason = clipped(&one.reason);
        }
        Quarantine { quarantined, watched: Vec::new() }
    }

    /// What the next worker is not to try, the oldest first.
    pub fn all(&self) -> &[Quarantined] {
        &self.quarantined
    }

    /// The worker said how it stands, at `now_ms`; `unix_ms` is for people. Whether what is remembered has changed.
    pub fn saw(&mut self, report: &HealthReport, now_ms: u64, unix_ms: u64) -> bool {
        let mut changed = false;
        for (model, version, digest) in identified(report) {
            if version.state == ModelState::Quarantined {
                let reason = version.reason.clone().unwrap_or_default();
                changed |= self.put(model, version.version, digest, reason, unix_ms);
            } else if version.serves() {
                let before = self.quarantined.len();
                // It is not tried unless somebody asks for it, and it does not serve unless it has proved itself.
                self.quarantined.retain(|one| !one.is(model, digest));
                changed |= self.quarantined.len() != before;
                self.serves(model, digest, now_ms);
            }
        }
        changed
    }

    /// A worker that stood like this crashed. Those that are quarantined from now on.
    pub fn crashed(
        &mut self,
        report: &HealthReport,
        cause: Cause,
        now_ms: u64,
        unix_ms: u64,
    ) -> Vec<Quarantined> {
        if !is_crash(cause) {
            return Vec::new();
        }
        let loading = |version: &VersionReport| {
            use ModelState::{Loading, Probing, Warming};
            matches!(version.state, Loading | Warming | Probing)
        };
        let is_anything_loaded = identified(report).any(|(_, version, _)| loading(version));
        let mut found = Vec::new();
        for (model, version, digest) in identified(report) {
            let watched = self.watch(model, digest);
            let on_trial = watched.trial_until_ms.is_some_and(|until_ms| now_ms < until_ms);
            let suspect = if is_anything_loaded { loading(version) } else { on_trial };
            if !suspect {
                continue;
            }
            watched.crashes += 1;
            if watched.crashes < CRASHES_MAX {
                continue;
            }
            watched.crashes = 0;
            let when = if is_anything_loaded { "it was loaded" } else { "it was new" };
            let reason = format!("the worker crashed {CRASHES_MAX} times while {when}");
            if self.put(model, version.version, digest, reason, unix_ms) {
                found.extend(self.quarantined.last().cloned());
            }
        }
        found
    }

    /// Whether it was not there before.
    fn put(&mut self, model: &str, version: u64, digest: &str, reason: String, at_ms: u64) -> bool {
        if self.quarantined.iter().any(|one| one.is(model, digest)) {
            return false;
        }
        let (model, digest, reason) = (model.to_owned(), digest.to_owned(), clipped(&reason));
        self.quarantined.push(Quarantined { model, version, digest, reason, at_ms });
        let surplus = self.quarantined.len().saturating_sub(QUARANTINED_MAX);
        self.quarantined.drain(..surplus);
        true
    }

    /// It serves: on trial, where another of its model has served before it.
    fn serves(&mut self, model: &str, digest: &str, now_ms: u64) {
        let has_predecessor =
            self.watched.iter().any(|one| one.model == model && one.digest != digest && one.served);
        let watched = self.watch(model, digest);
        if !watched.served {
            watched.served = true;
            watched.trial_until_ms = has_predecessor.then(|| now_ms.saturating_add(TRIAL_MS));
        }
        if watched.trial_until_ms.is_some_and(|until_ms| now_ms >= until_ms) {
            watched.trial_until_ms = None;
            watched.crashes = 0;
        }
    }

    fn watch(&mut self, model: &str, digest: &str) -> &mut Watched {
        let is = |one: &Watched| one.model == model && one.digest == digest;
        let place = match self.watched.iter().position(is) {
            Some(place) => place,
            None => {
                let surplus = (self.watched.len() + 1).saturating_sub(WATCHED_MAX);
                self.watched.drain(..surplus);
                self.watched.push(Watched {
                    model: model.to_owned(),
                    digest: digest.to_owned(),
                    crashes: 0,
                    trial_until_ms: None,
                    served: false,
                });
                self.watched.len() - 1
            }
        };
        &mut self.watched[place]
    }
}

/// The versions whose bytes are known, with their models and digests.
fn identified(report: &HealthReport) -> impl Iterator<Item = (&str, &VersionReport, &str)> {
    report.models.iter().flat_map(|model| {
        model
            .versions
            .iter()
            .filter_map(|version| Some((model.name.as_str(), version, version.digest.as_deref()?)))
    })
}

fn clipped(reason: &str) -> String {
    reason.chars().take(REASON_CHARS_MAX).collect()
}

/// Whether an end for this cause is one that a model may have brought about.
const fn is_crash(cause: Cause) -> bool {
    match cause {
        Cause::Segv | Cause::Abort | Cause::Killed | Cause::Signal | Cause::Gpu => true,
        Cause::Exit
        | Cause::Hang
        | Cause::Wedged
        | Cause::Lanes
        | Cause::Memory
        | Cause::Unkillable
        | Cause::Start => false,
    }
}

#[cfg(test)]
mod tests;
