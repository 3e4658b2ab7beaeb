//! What came of a card: from what was seen to a verdict, in figures and in a sentence. Pure.

use super::card::Bounds;
use balm_loadtest::steady::Fate;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

/// A request that has ended; seconds from the fault.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Answer {
    pub(super) question: usize,
    pub(super) sent_s: f64,
    pub(super) ended_s: f64,
    pub(super) fate: Fate,
}

/// What the server said of itself at one moment; seconds from the fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Sight {
    /// What `/ready` says.
    pub(super) ready: bool,
    /// Whether every version that is wanted serves with all its lanes, and no incident is open.
    pub(super) whole: bool,
    /// Incidents that it has told of in this worker.
    pub(super) incidents: u64,
    /// Workers since it started.
    pub(super) workers: u64,
    /// The highest version of the model that the card is about which is ready.
    pub(super) version: u64,
}

/// All that was seen of a card.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub(super) answers: Vec<Answer>,
    /// In the order of time.
    pub(super) sights: Vec<(f64, Sight)>,
    /// What the server told by an answer of its own, such as the refusal of a load.
    pub(super) told_s: Option<f64>,
    /// What else has to hold, found in the course of the card.
    pub(super) further: Vec<Check>,
    /// Restarts that a kubelet would have made.
    pub(super) restarts: u32,
    /// Requests that were not sent, because too many were under way.
    pub(super) not_sent: u64,
    /// Requests that had their time and no end.
    pub(super) unanswered: u64,
    /// How long the fault itself lasts, where it is one that does, such as a load.
    pub(super) lasts_s: f64,
    /// How much later the fault was than what moments were counted from at first.
    pub(super) offset_s: f64,
}

/// One thing that has to hold.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Check {
    /// What.
    pub(super) what: String,
    /// What was found.
    pub(super) found: String,
    /// What was expected.
    pub(super) expected: String,
    /// Whether it holds.
    pub(super) passed: bool,
}

/// How requests ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Counts {
    /// Sent.
    pub(super) asked: u64,
    /// Answered rightly.
    pub(super) right: u64,
    /// Answered wrongly.
    pub(super) wrong: u64,
    /// Answered with another status, by status.
    pub(super) refused: BTreeMap<u16, u64>,
    /// Sent, and never answered.
    pub(super) lost: u64,
    /// Not let in by the system: nobody listened.
    pub(super) not_connected: u64,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Outcome {
    /// Whether every check passed.
    pub(super) passed: bool,
    /// When the server noticed, seconds from the fault.
    pub(super) detected_s: Option<f64>,
    /// How long the fault itself lasted, where it is one that does, such as a load, seconds.
    pub(super) lasted_s: f64,
    /// When answers were right, the server ready and nothing amiss any more, seconds from the fault, or from its end where it lasted;
    /// none if never.
    pub(super) healed_s: Option<f64>,
    /// Restarts that a kubelet would have made.
    pub(super) kubelet_restarts: u32,
    /// Workers that were replaced.
    pub(super) workers_replaced: u64,
    /// From the fault on.
    pub(super) requests: Counts,
    /// What was expected, and found.
    pub(super) checks: Vec<Check>,
}

impl Counts {
    fn of(seen: &Seen) -> Counts {
        let mut counts =
            Counts { lost: seen.unanswered, asked: seen.unanswered, ..Counts::default() };
        for answer in seen.answers.iter().filter(|answer| answer.ended_s >= 0.0) {
            counts.asked += 1;
            match answer.fate {
                Fate::Right => counts.right += 1,
                Fate::Wrong => counts.wrong += 1,
                Fate::Refused(status) => *counts.refused.entry(status).or_default() += 1,
                Fate::Lost(_) => counts.lost += 1,
                Fate::NotConnected => counts.not_connected += 1,
            }
        }
        counts
    }
}

impl Check {
    /// That `found` is at most `limit`.
    pub(super) fn at_most(what: &str, found: u64, limit: u64) -> Check {
        Check {
            what: what.to_owned(),
            found: found.to_string(),
            expected: if limit == 0 { "none".to_owned() } else { format!("at most {limit}") },
            passed: found <= limit,
        }
    }

    /// That something holds.
    pub(super) fn holds(what: &str, found: &str, expected: &str, passed: bool) -> Check {
        let [what, found, expected] = [what, found, expected].map(str::to_owned);
        Check { what, found, expected, passed }
    }

    fn within(what: &str, found: Option<f64>, limit: Duration) -> Check {
        Check {
            what: what.to_owned(),
            found: found.map_or_else(|| "never".to_owned(), |found| format!("{found:.1} s")),
            expected: format!("within {} s", limit.as_secs()),
            passed: found.is_some_and(|found| found <= limit.as_secs_f64()),
        }
    }
}

impl Sight {
    /// Whether it says that something is or was amiss that was not at `start`.
    fn tells_of_trouble(&self, start: &Sight) -> bool {
        !self.ready || self.incidents > start.incidents || self.workers > start.workers
    }

    fn is_well(&self) -> bool {
        self.ready && self.whole
    }
}

impl Seen {
    /// The fault was so much later than what moments were counted from until now.
    pub(super) fn shift(&mut self, by_s: f64) {
        self.offset_s += by_s;
        for answer in &mut self.answers {
            answer.sent_s -= by_s;
            answer.ended_s -= by_s;
        }
        for (at, _) in &mut self.sights {
            *at -= by_s;
        }
    }

    /// How it stood before the fault.
    fn start(&self) -> Sight {
        let before = self.sights.iter().take_while(|(at, _)| *at < 0.0).last();
        before.or(self.sights.first()).map(|(_, sight)| *sight).unwrap_or_default()
    }

    /// When the server noticed.
    pub(super) fn detected_s(&self) -> Option<f64> {
        let start = self.start();
        let after = self.sights.iter().filter(|(at, _)| *at >= 0.0);
        let mut seen = after.filter(|(_, sight)| sight.tells_of_trouble(&start));
        [seen.next().map(|(at, _)| *at), self.told_s].into_iter().flatten().min_by(f64::total_cmp)
    }

    /// When all was well again: after the last answer that was not right, the last sight of trouble, and when it was noticed; and
    /// only if something right came after it. 0 where nothing was ever amiss. Counts from the end of a fault that lasts.
    pub(super) fn healed_s(&self) -> Option<f64> {
        let last_bad = self
            .answers
            .iter()
            .filter(|answer| answer.ended_s >= 0.0 && answer.fate != Fate::Right)
            .map(|answer| answer.ended_s)
            .fold(0.0, f64::max);
        let well = self.sights.iter().rposition(|(at, sight)| *at >= 0.0 && !sight.is_well());
        let well_at = match well {
            None => 0.0,
            Some(last) => self.sights.get(last + 1)?.0,
        };
        // What was mended between two looks was noticed by what is told of it.
        let noticed = self.detected_s().unwrap_or(0.0);
        let healed = last_bad.max(well_at).max(noticed);
        let proved = |answer: &Answer| answer.fate == Fate::Right && answer.ended_s >= healed;
        self.answers.iter().any(proved).then_some((healed - self.lasts_s).max(0.0))
    }

    /// Workers that were replaced so far.
    pub(super) fn workers_replaced(&self) -> u64 {
        let last = self.sights.last().map_or(0, |(_, sight)| sight.workers);
        last.saturating_sub(self.start().workers)
    }

    /// Whether there is nothing more to be seen at `now_s`: noticed, as many workers as expected, and well for `settled_s`.
    pub(super) fn is_over(&self, bounds: &Bounds, now_s: f64, settled_s: f64) -> bool {
        (bounds.detected.is_none() || self.detected_s().is_some())
            && self.workers_replaced() >= bounds.workers.0
            && self.sights.last().is_some_and(|(_, sight)| sight.is_well())
            && self.healed_s().is_some_and(|healed| now_s >= self.lasts_s + healed + settled_s)
    }
}

/// The verdict.
pub(super) fn judge(bounds: &Bounds, seen: &Seen) -> Outcome {
    let requests = Counts::of(seen);
    let (detected_s, healed_s) = (seen.detected_s(), seen.healed_s());
    let workers = seen.workers_replaced();
    let mut checks = Vec::new();
    if let Some(limit) = bounds.detected {
        checks.push(Check::within("noticed", detected_s, limit));
    }
    checks.push(Check::within("well again", healed_s, bounds.healed));
    checks.push(Check::at_most("answers that were wrong", requests.wrong, 0));
    checks.push(Check::at_most("requests lost", requests.lost, bounds.lost));
    checks.push(Check::at_most("connections refused", requests.not_connected, 0));
    checks.push(Check::at_most("restarts by a kubelet", u64::from(seen.restarts), 0));
    let (least, most) = bounds.workers;
    checks.push(Check {
        what: "workers replaced".to_owned(),
        found: workers.to_string(),
        expected: if least == most { least.to_string() } else { format!("{least} to {most}") },
        passed: (least..=most).contains(&workers),
    });
    if bounds.stays_ready {
        let unready = seen.sights.iter().filter(|(at, sight)| *at >= 0.0 && !sight.ready).count();
        checks.push(Check::at_most("times seen not ready", unready as u64, 0));
    }
    checks.extend(seen.further.iter().cloned());
    Outcome {
        passed: checks.iter().all(|check| check.passed),
        detected_s,
        lasted_s: seen.lasts_s,
        healed_s,
        kubelet_restarts: seen.restarts,
        workers_replaced: workers,
        requests,
        checks,
    }
}

impl Outcome {
    /// What happened, in a sentence that begins with `what`.
    pub(super) fn sentence(&self, what: &str) -> String {
        let mut text = what.to_owned();
        if let Some(detected) = self.detected_s {
            let _ = write!(text, "; noticed after {detected:.1} s");
        }
        match self.healed_s {
            None => text.push_str("; not well again"),
            Some(_) if self.requests.asked == self.requests.right => {
                text.push_str("; no client noticed");
            }
            Some(healed) if self.lasted_s > 0.0 => {
                let _ = write!(text, "; well again {healed:.1} s after its end");
            }
            Some(healed) => {
                let _ = write!(text, "; well again after {healed:.1} s");
            }
        }
        let Counts { asked, right, wrong, refused, lost, not_connected } = &self.requests;
        let _ = write!(text, "; {right} of {asked} requests answered rightly");
        for (status, count) in refused {
            let _ = write!(text, ", {count} answered {status}");
        }
        match lost {
            0 => text.push_str(", none lost"),
            1 => text.push_str(", 1 lost that was under way"),
            _ => {
                let _ = write!(text, ", {lost} lost that were under way");
            }
        }
        if *wrong > 0 {
            let _ = write!(text, ", {wrong} ANSWERED WRONGLY");
        }
        if *not_connected > 0 {
            let _ = write!(text, ", {not_connected} refused a connection");
        }
        text.push('.');
        text
    }
}
