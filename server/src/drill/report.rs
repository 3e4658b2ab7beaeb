//! What a drill has found: the JSON that it writes, and all that the report card and the page are made of.

pub(super) mod html;

use super::asking::{Asked, Baseline};
use super::card::{Card, Name};
use super::judge::{Answer, Outcome};
use super::play::Played;
use balm_loadtest::machine::Machine;
use balm_loadtest::steady::Fate;
use serde::Serialize;
use std::fmt::Write as _;

/// The present form of the JSON: grows when a field changes its meaning or goes; new fields may come.
const SCHEMA: u32 = 1;
/// Width of a piece of the picture, in seconds.
const BUCKET_S: f64 = 0.25;
/// Pieces of a picture at most.
const BUCKETS_MAX: usize = 1000;

/// A whole drill.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    pub(super) schema: u32,
    /// Version of Balm.
    pub(super) balm: String,
    /// When it began, RFC 3339.
    pub(super) begun: String,
    /// How long it took.
    pub(super) seconds: f64,
    pub(super) seed: u64,
    pub(super) machine: Machine,
    /// The repository that was copied.
    pub(super) repository: String,
    /// The models that were asked; faults were for the first.
    pub(super) models: Vec<ModelReport>,
    /// Whether every card that was played passed.
    pub(super) passed: bool,
    pub(super) cards: Vec<CardReport>,
}

/// A model that was asked.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ModelReport {
    pub(super) name: String,
    pub(super) version: u64,
    /// Whether right answers were recorded with the model; else they were taken down while all was well.
    pub(super) recorded: bool,
    /// One client, while all was well.
    #[serde(flatten)]
    pub(super) baseline: Baseline,
    /// Requests a second of the light load.
    pub(super) per_s: f64,
}

/// What became of a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    /// Every check passed.
    Passed,
    /// One did not.
    Failed,
    /// It cannot be played on these models.
    Skipped,
}

/// A card that was played.
#[derive(Clone, Debug, Serialize)]
pub(super) struct CardReport {
    pub(super) name: Name,
    pub(super) title: &'static str,
    pub(super) about: &'static str,
    pub(super) status: Status,
    /// What happened.
    pub(super) sentence: String,
    /// How long the card took.
    pub(super) seconds: f64,
    #[serde(flatten)]
    pub(super) outcome: Option<Outcome>,
    /// What it means that it failed, and what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) advice: Option<Advice>,
    pub(super) timeline: Timeline,
}

/// For a card that failed.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Advice {
    pub(super) meaning: &'static str,
    pub(super) remedy: &'static str,
}

/// Answers by when they came.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Timeline {
    /// Seconds from the fault to the first bucket; before it, so negative.
    pub(super) from_s: f64,
    pub(super) bucket_s: f64,
    pub(super) buckets: Vec<Bucket>,
}

/// A piece of the timeline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Bucket {
    pub(super) right: u64,
    pub(super) wrong: u64,
    pub(super) refused: u64,
    pub(super) lost: u64,
}

impl Report {
    /// Of a drill that begins now.
    pub(super) fn new(begun: String, seed: u64, repository: String) -> Report {
        Report {
            schema: SCHEMA,
            balm: env!("CARGO_PKG_VERSION").to_owned(),
            begun,
            seconds: 0.0,
            seed,
            machine: Machine::detect(),
            repository,
            models: Vec::new(),
            passed: true,
            cards: Vec::new(),
        }
    }

    /// Adds a card.
    pub(super) fn add(&mut self, card: &CardReport) {
        self.passed &= card.status != Status::Failed;
        self.cards.push(card.clone());
    }

    fn count(&self, status: Status) -> usize {
        self.cards.iter().filter(|card| card.status == status).count()
    }

    /// How it went, in a line.
    pub(super) fn headline(&self) -> String {
        let (passed, failed, skipped) =
            (self.count(Status::Passed), self.count(Status::Failed), self.count(Status::Skipped));
        let mut text = format!("{passed} of {} cards passed", passed + failed);
        if skipped > 0 {
            let _ = write!(text, ", {skipped} not played");
        }
        let sum = |count: fn(&Outcome) -> u64| -> u64 {
            self.cards.iter().filter_map(|card| card.outcome.as_ref()).map(count).sum()
        };
        let _ = write!(
            text,
            "; {} requests, {} answered wrongly, {} lost with a worker; {} restarts by a kubelet; {:.0} s",
            sum(|outcome| outcome.requests.asked),
            sum(|outcome| outcome.requests.wrong),
            sum(|outcome| outcome.requests.lost),
            sum(|outcome| u64::from(outcome.kubelet_restarts)),
            self.seconds
        );
        text
    }

    /// The report card for a terminal.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(
            text,
            "{:<16} {:<7} {:>8} {:>8} {:>6} {:>6} {:>9}",
            "card", "", "noticed", "well", "lost", "wrong", "restarts"
        );
        let seconds = |value: Option<f64>| {
            value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1} s"))
        };
        for card in &self.cards {
            let word = match card.status {
                Status::Passed => "passed",
                Status::Failed => "FAILED",
                Status::Skipped => "skipped",
            };
            let cells = card.outcome.as_ref().map_or_else(Default::default, |outcome| {
                [
                    seconds(outcome.detected_s),
                    seconds(outcome.healed_s),
                    outcome.requests.lost.to_string(),
                    outcome.requests.wrong.to_string(),
                    outcome.kubelet_restarts.to_string(),
                ]
            });
            let [noticed, well, lost, wrong, restarts] = cells;
            let name = card.name.as_str();
            let line = format!(
                "{name:<16} {word:<7} {noticed:>8} {well:>8} {lost:>6} {wrong:>6} {restarts:>9}"
            );
            let _ = writeln!(text, "{}", line.trim_end());
        }
        text.push('\n');
        for card in &self.cards {
            let _ = writeln!(text, "{}: {}", card.name.as_str(), card.sentence);
            let checks = card.outcome.iter().flat_map(|outcome| &outcome.checks);
            for check in checks.filter(|check| !check.passed) {
                let _ = writeln!(
                    text,
                    "  NOT {}: {} (found {})",
                    check.what, check.expected, check.found
                );
            }
            if let Some(advice) = card.advice {
                let _ = writeln!(text, "  {} {}", advice.meaning, advice.remedy);
            }
        }
        let verdict = if self.passed { "passed" } else { "FAILED" };
        let _ = writeln!(text, "\n{verdict}: {}", self.headline());
        text
    }
}

impl ModelReport {
    /// Of a model that is asked.
    pub(super) fn of(asked: &Asked) -> ModelReport {
        ModelReport {
            name: asked.name.clone(),
            version: asked.version,
            recorded: asked.recorded,
            baseline: asked.baseline,
            per_s: asked.per_s,
        }
    }
}

impl CardReport {
    /// Of a card that took so long.
    pub(super) fn of(card: &Card, played: Played, seconds: f64) -> CardReport {
        let (status, sentence, outcome, timeline) = match played {
            Played::Skipped(reason) => (Status::Skipped, reason, None, Timeline::default()),
            Played::Broken(reason) => (Status::Failed, reason, None, Timeline::default()),
            Played::Judged { outcome, sentence, answers } => {
                let status = if outcome.passed { Status::Passed } else { Status::Failed };
                (status, sentence, Some(outcome), Timeline::of(&answers))
            }
        };
        let failed = status == Status::Failed;
        CardReport {
            name: card.name,
            title: card.title,
            about: card.about,
            status,
            sentence,
            seconds,
            outcome,
            advice: failed.then_some(Advice { meaning: card.meaning, remedy: card.remedy }),
            timeline,
        }
    }
}

impl Timeline {
    fn of(answers: &[Answer]) -> Timeline {
        let first = answers.iter().map(|answer| answer.ended_s).fold(0.0, f64::min);
        let from_s = (first / BUCKET_S).floor() * BUCKET_S;
        let mut buckets: Vec<Bucket> = Vec::new();
        for answer in answers {
            let index = ((answer.ended_s - from_s) / BUCKET_S).max(0.0) as usize;
            if index >= BUCKETS_MAX {
                continue;
            }
            if index >= buckets.len() {
                buckets.resize(index + 1, Bucket::default());
            }
            let bucket = &mut buckets[index];
            match answer.fate {
                Fate::Right => bucket.right += 1,
                Fate::Wrong => bucket.wrong += 1,
                Fate::Refused(_) => bucket.refused += 1,
                Fate::Lost(_) | Fate::NotConnected => bucket.lost += 1,
            }
        }
        Timeline { from_s, bucket_s: BUCKET_S, buckets }
    }
}
