//! Incidents: one story for each, from what was seen to what healed it.
//!
//! Trouble with one thing is one incident until it is well again, however often it is seen and whatever is tried. The list is
//! bounded: closed incidents make way first, the oldest of them. Times are two: a monotonic one for what took how long, and one
//! of the calendar for people.

use std::collections::VecDeque;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ladder::{Reason, Rung};

/// Incidents that are kept.
pub const INCIDENTS_MAX: usize = 32;
/// Deeds of one incident that are kept, the first ones.
pub const DEEDS_MAX: usize = 16;

/// Something that was done about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deed {
    /// On which rung of the ladder.
    pub rung: Rung,
    /// Why on this one.
    pub reason: Reason,
    /// How long after the incident was opened, milliseconds.
    pub after_ms: u64,
}

/// One story.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incident {
    /// Counts from 1 in each process: what log lines of one story have in common.
    pub id: u64,
    /// What it is about, for example `lane 0 of model "iris" version 1`.
    pub subject: String,
    /// What is wrong.
    pub reason: Reason,
    /// When it was seen, milliseconds of Unix time.
    pub opened_at_ms: u64,
    /// How long it had been wrong by then, milliseconds.
    pub detected_after_ms: u64,
    /// How often it was seen while open.
    pub seen: u64,
    /// What was done.
    pub deeds: Vec<Deed>,
    /// How long after it was seen all was well again, milliseconds; none while it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healed_after_ms: Option<u64>,
    /// The whole story in one sentence.
    pub story: String,
}

impl fmt::Display for Incident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Incident { subject, reason, detected_after_ms, seen, deeds, healed_after_ms, .. } =
            self;
        write!(f, "{subject}: {}, seen after {}", reason.sentence(), Seconds(*detected_after_ms))?;
        if *seen > 1 {
            write!(f, ", {seen} times")?;
        }
        for Deed { rung, reason: why, .. } in deeds {
            write!(f, "; then {}", rung.deed())?;
            if why != reason {
                write!(f, " because {}", why.sentence())?;
            }
        }
        match healed_after_ms {
            Some(ms) => write!(f, "; well again {} later", Seconds(*ms)),
            None => f.write_str("; not well yet"),
        }
    }
}

/// Milliseconds as seconds with one place.
struct Seconds(u64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenths = self.0.saturating_add(50) / 100;
        write!(f, "{}.{} s", tenths / 10, tenths % 10)
    }
}

/// What is seen to be wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// What it is about.
    pub subject: String,
    /// What is wrong.
    pub reason: Reason,
    /// How long it has been wrong, milliseconds.
    pub after_ms: u64,
}

#[derive(Clone, Debug)]
struct Entry {
    incident: Incident,
    /// On the monotonic clock.
    opened_ms: u64,
}

/// The incidents that are remembered. `now_ms` is a monotonic clock's, `unix_ms` the calendar's.
#[derive(Clone, Debug, Default)]
pub struct Incidents {
    entries: VecDeque<Entry>,
    opened: u64,
}

impl Incidents {
    /// Something is wrong: opens an incident, or adds to the one about the same subject that is open. Gives it, as it is then.
    pub fn see(&mut self, sighting: Sighting, now_ms: u64, unix_ms: u64) -> Incident {
        if let Some(entry) = self.open_about(&sighting.subject) {
            entry.incident.seen = entry.incident.seen.saturating_add(1);
            return entry.told();
        }
        self.opened += 1;
        if self.entries.len() >= INCIDENTS_MAX {
            let closed = |entry: &Entry| entry.incident.healed_after_ms.is_some();
            let place = self.entries.iter().position(closed).unwrap_or(0);
            self.entries.remove(place);
        }
        let mut entry = Entry {
            incident: Incident {
                id: self.opened,
                subject: sighting.subject,
                reason: sighting.reason,
                opened_at_ms: unix_ms,
                detected_after_ms: sighting.after_ms,
                seen: 1,
                deeds: Vec::new(),
                healed_after_ms: None,
                story: String::new(),
            },
            opened_ms: now_ms,
        };
        let told = entry.told();
        self.entries.push_back(entry);
        told
    }

    /// Something was done about the open incident on `subject`. Gives it, or `None` when there is none.
    pub fn act(
        &mut self,
        subject: &str,
        rung: Rung,
        reason: Reason,
        now_ms: u64,
    ) -> Option<Incident> {
        let entry = self.open_about(subject)?;
        if entry.incident.deeds.len() < DEEDS_MAX {
            let after_ms = now_ms.saturating_sub(entry.opened_ms);
            entry.incident.deeds.push(Deed { rung, reason, after_ms });
        }
        Some(entry.told())
    }

    /// What `subject` names is well again. Gives the closed incident, or `None` when there was none.
    pub fn heal(&mut self, subject: &str, now_ms: u64) -> Option<Incident> {
        let entry = self.open_about(subject)?;
        entry.incident.healed_after_ms = Some(now_ms.saturating_sub(entry.opened_ms));
        Some(entry.told())
    }

    /// All that are remembered, the oldest first.
    pub fn all(&self) -> Vec<Incident> {
        self.entries.iter().map(|entry| entry.incident.clone()).collect()
    }

    fn open_about(&mut self, subject: &str) -> Option<&mut Entry> {
        self.entries.iter_mut().rev().find(|entry| {
            entry.incident.healed_after_ms.is_none() && entry.incident.subject == subject
        })
    }
}

impl Entry {
    fn told(&mut self) -> Incident {
        self.incident.story = self.incident.to_string();
        self.incident.clone()
    }
}

#[cfg(test)]
mod tests;
