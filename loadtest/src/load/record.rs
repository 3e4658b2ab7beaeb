//! What a run has seen so far: counts and latencies by phase and client, and a timeline.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::result::{Bucket, Latencies};

/// Longer latencies are counted as this long.
const LATENCY_MAX_US: u64 = 600_000_000;
/// Samples that are kept to tell when a phase has recovered.
const SAMPLES_MAX: usize = 2_000_000;

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Ended {
    /// An answer of that status, of the right size, and in time, or not.
    Answered { status: u16, late: bool, wrong: bool },
    /// No answer.
    Failed(&'static str),
    /// The client hung up on purpose.
    Abandoned,
}

/// Counts of one client in one phase.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    pub(crate) offered: u64,
    pub(crate) sent: u64,
    pub(crate) not_sent: u64,
    pub(crate) accepted: u64,
    pub(crate) late: u64,
    pub(crate) wrong: u64,
    pub(crate) abandoned: u64,
    /// Requests with a good answer in the end, and without.
    pub(crate) succeeded: u64,
    pub(crate) failed: u64,
    /// Good answers while the phase lasted, to whichever phase's requests.
    pub(crate) good_within: u64,
    pub(crate) statuses: BTreeMap<u16, u64>,
    pub(crate) errors: BTreeMap<&'static str, u64>,
    pub(crate) accepted_us: Histogram<u64>,
    pub(crate) rejected_us: Histogram<u64>,
}

/// An accepted answer: when, from the start of its phase, and how long it took.
pub(crate) type Sample = (Duration, Duration);

/// Everything seen.
pub(crate) struct Recorder {
    start: Instant,
    /// Ends of the phases, from the start.
    ends: Vec<Duration>,
    /// By phase and client.
    pub(crate) tallies: Vec<Vec<Tally>>,
    /// By phase: how late requests were sent.
    pub(crate) lags_us: Vec<Histogram<u64>>,
    /// By phase, where they are wanted: accepted answers by when they came.
    pub(crate) samples: Vec<Option<Vec<Sample>>>,
    timeline: Timeline,
    last_answer: Instant,
    unanswered: u64,
    last_failure: &'static str,
}

struct Timeline {
    width: Duration,
    buckets: Vec<Bucket>,
    /// Which bucket the two belong to.
    open: usize,
    accepted_us: Histogram<u64>,
    rejected_us: Histogram<u64>,
}

// ===== impl Tally =====

impl Tally {
    pub(crate) fn new() -> anyhow::Result<Tally> {
        Ok(Tally {
            offered: 0,
            sent: 0,
            not_sent: 0,
            accepted: 0,
            late: 0,
            wrong: 0,
            abandoned: 0,
            succeeded: 0,
            failed: 0,
            good_within: 0,
            statuses: BTreeMap::new(),
            errors: BTreeMap::new(),
            accepted_us: Histogram::new(3)?,
            rejected_us: Histogram::new(3)?,
        })
    }

    /// Adds another's counts.
    pub(crate) fn add(&mut self, other: &Tally) -> anyhow::Result<()> {
        for (sum, more) in [
            (&mut self.offered, other.offered),
            (&mut self.sent, other.sent),
            (&mut self.not_sent, other.not_sent),
            (&mut self.accepted, other.accepted),
            (&mut self.late, other.late),
            (&mut self.wrong, other.wrong),
            (&mut self.abandoned, other.abandoned),
            (&mut self.succeeded, other.succeeded),
            (&mut self.failed, other.failed),
            (&mut self.good_within, other.good_within),
        ] {
            *sum += more;
        }
        for (status, count) in &other.statuses {
            *self.statuses.entry(*status).or_default() += count;
        }
        for (error, count) in &other.errors {
            *self.errors.entry(error).or_default() += count;
        }
        self.accepted_us.add(&other.accepted_us)?;
        self.rejected_us.add(&other.rejected_us)?;
        Ok(())
    }

    fn ended(&mut self, ended: Ended, latency: Duration) {
        match ended {
            Ended::Answered { status, late, wrong } => {
                *self.statuses.entry(status).or_default() += 1;
                if (200..300).contains(&status) {
                    self.accepted += 1;
                    self.late += u64::from(late);
                    self.wrong += u64::from(wrong);
                    record(&mut self.accepted_us, latency);
                } else {
                    record(&mut self.rejected_us, latency);
                }
            }
            Ended::Failed(kind) => *self.errors.entry(kind).or_default() += 1,
            Ended::Abandoned => self.abandoned += 1,
        }
    }
}

// ===== impl Ended =====

impl Ended {
    /// What the client asked for: right and in time.
    pub(crate) fn is_good(self) -> bool {
        matches!(self, Ended::Answered { status: 200..=299, late: false, wrong: false })
    }

    /// Whether a client that retries would.
    pub(crate) fn invites_retry(self) -> bool {
        matches!(self, Ended::Answered { status: 429 | 503 | 504, .. } | Ended::Failed(_))
    }
}

// ===== impl Recorder =====

impl Recorder {
    /// From `start` on, with phases of these lengths; `sampled` says whose answers are kept one by one.
    pub(crate) fn new(
        start: Instant,
        phases: &[(Duration, bool)],
        clients: usize,
        width: Duration,
    ) -> anyhow::Result<Recorder> {
        let mut end = Duration::ZERO;
        let mut ends = Vec::with_capacity(phases.len());
        let mut tallies = Vec::with_capacity(phases.len());
        let mut lags_us = Vec::with_capacity(phases.len());
        for (length, _) in phases {
            end += *length;
            ends.push(end);
            tallies.push((0..clients).map(|_| Tally::new()).collect::<anyhow::Result<Vec<_>>>()?);
            lags_us.push(Histogram::new(3)?);
        }
        Ok(Recorder {
            start,
            ends,
            tallies,
            lags_us,
            samples: phases.iter().map(|(_, sampled)| sampled.then(Vec::new)).collect(),
            timeline: Timeline {
                width,
                buckets: Vec::new(),
                open: 0,
                accepted_us: Histogram::new(3)?,
                rejected_us: Histogram::new(3)?,
            },
            last_answer: start,
            unanswered: 0,
            last_failure: "no answer",
        })
    }

    /// A request whose moment has come, whether it can be sent or not.
    pub(crate) fn arrived(&mut self, phase: usize, client: usize, intended: Instant, sent: bool) {
        let tally = &mut self.tallies[phase][client];
        tally.offered += 1;
        tally.not_sent += u64::from(!sent);
        let bucket = self.timeline.at(intended - self.start);
        bucket.offered += 1;
        bucket.not_sent += u64::from(!sent);
    }

    /// An attempt goes out.
    pub(crate) fn sending(&mut self, phase: usize, client: usize, intended: Instant, now: Instant) {
        self.tallies[phase][client].sent += 1;
        self.unanswered += 1;
        record(&mut self.lags_us[phase], now.saturating_duration_since(intended));
        self.timeline.at(now - self.start).sent += 1;
    }

    /// An attempt has ended; `latency` counts from when it was meant to be sent.
    pub(crate) fn ended(
        &mut self,
        phase: usize,
        client: usize,
        ended: Ended,
        latency: Duration,
        now: Instant,
    ) {
        self.tallies[phase][client].ended(ended, latency);
        let since_start = now - self.start;
        match ended {
            Ended::Answered { status, .. } => {
                self.last_answer = now;
                self.unanswered = 0;
                if (200..300).contains(&status) {
                    self.sample(since_start, latency);
                }
            }
            Ended::Failed(kind) => self.last_failure = kind,
            // Nobody waited long enough to tell whether the target lives.
            Ended::Abandoned => {}
        }
        if let Some(during) = self.phase_at(since_start).filter(|_| ended.is_good()) {
            self.tallies[during][client].good_within += 1;
        }
        self.timeline.ended(since_start, ended, latency);
    }

    /// A request has had its last attempt.
    pub(crate) fn settled(&mut self, phase: usize, client: usize, good: bool) {
        let tally = &mut self.tallies[phase][client];
        if good { tally.succeeded += 1 } else { tally.failed += 1 }
    }

    /// Why the target counts as lost, if it has not answered anything for that long though it was asked.
    pub(crate) fn lost(&self, give_up: Duration, now: Instant) -> Option<String> {
        let silent = now.saturating_duration_since(self.last_answer);
        (self.unanswered > 0 && silent >= give_up).then(|| {
            format!(
                "the target has answered nothing for {:.0} s ({} attempts; the last ended: {})",
                silent.as_secs_f64(),
                self.unanswered,
                self.last_failure
            )
        })
    }

    /// The timeline, closed.
    pub(crate) fn buckets(&mut self) -> Vec<Bucket> {
        self.timeline.close();
        self.timeline.buckets.clone()
    }

    fn phase_at(&self, since_start: Duration) -> Option<usize> {
        let index = self.ends.partition_point(|end| *end <= since_start);
        (index < self.ends.len()).then_some(index)
    }

    fn sample(&mut self, since_start: Duration, latency: Duration) {
        let Some(phase) = self.phase_at(since_start) else { return };
        let begin = if phase == 0 { Duration::ZERO } else { self.ends[phase - 1] };
        if let Some(samples) = &mut self.samples[phase]
            && samples.len() < SAMPLES_MAX
        {
            samples.push((since_start - begin, latency));
        }
    }
}

// ===== impl Timeline =====

impl Timeline {
    fn index(&self, since_start: Duration) -> usize {
        let index = since_start.as_nanos() / self.width.as_nanos().max(1);
        usize::try_from(index).unwrap_or(usize::MAX)
    }

    fn at(&mut self, since_start: Duration) -> &mut Bucket {
        let index = self.index(since_start);
        if index >= self.buckets.len() {
            self.buckets.resize_with(index + 1, Bucket::default);
        }
        &mut self.buckets[index]
    }

    fn ended(&mut self, since_start: Duration, ended: Ended, latency: Duration) {
        // Answers come in the order of time, so one bucket at a time is open.
        let index = self.index(since_start);
        if index != self.open {
            self.close();
            self.open = index;
        }
        let bucket = self.at(since_start);
        match ended {
            Ended::Answered { status, .. } => {
                match status {
                    200..=299 => bucket.ok += 1,
                    429 => bucket.status_429 += 1,
                    503 => bucket.status_503 += 1,
                    504 => bucket.status_504 += 1,
                    _ => bucket.other += 1,
                }
                let accepted = (200..300).contains(&status);
                let times = if accepted { &mut self.accepted_us } else { &mut self.rejected_us };
                record(times, latency);
            }
            Ended::Failed(_) => bucket.errors += 1,
            Ended::Abandoned => bucket.abandoned += 1,
        }
    }

    fn close(&mut self) {
        if let Some(bucket) = self.buckets.get_mut(self.open) {
            bucket.accepted = Latencies::of(&self.accepted_us);
            bucket.rejected = Latencies::of(&self.rejected_us);
        }
        self.accepted_us.reset();
        self.rejected_us.reset();
    }
}

/// Histograms grow as they need; a latency beyond all bounds counts as the greatest.
pub(crate) fn record(times: &mut Histogram<u64>, time: Duration) {
    let microseconds = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).min(LATENCY_MAX_US);
    // It can refuse what is out of range, which nothing is.
    let _ = times.record(microseconds);
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn recorder(start: Instant) -> Recorder {
        let second = Duration::from_secs(1);
        Recorder::new(start, &[(second, false), (second, true)], 1, second / 2).unwrap()
    }

    fn answered(status: u16) -> Ended {
        Ended::Answered { status, late: false, wrong: false }
    }

    #[test]
    fn an_answer_counts_for_the_phase_of_its_request_and_good_ones_for_when_they_came() {
        let start = Instant::now();
        let mut recorder = recorder(start);
        recorder.arrived(0, 0, start, true);
        recorder.sending(0, 0, start, start + 3 * MS);
        recorder.ended(0, 0, answered(200), 1500 * MS, start + 1500 * MS);
        recorder.settled(0, 0, true);
        let [first, second] = [0, 1].map(|phase| recorder.tallies[phase][0].clone());
        assert_eq!((first.offered, first.sent, first.accepted, first.succeeded), (1, 1, 1, 1));
        assert_eq!((first.good_within, second.good_within, second.accepted), (0, 1, 0));
        assert_eq!(recorder.samples[1], Some(vec![(500 * MS, 1500 * MS)]));
        assert!((3000..3010).contains(&recorder.lags_us[0].max()));
        // After the last phase nothing is within any.
        recorder.ended(1, 0, answered(200), MS, start + 2000 * MS);
        assert_eq!(recorder.tallies[1][0].good_within, 1);
    }

    #[test]
    fn every_end_has_its_count() {
        let start = Instant::now();
        let mut recorder = recorder(start);
        for ended in [
            answered(200),
            Ended::Answered { status: 200, late: true, wrong: false },
            Ended::Answered { status: 200, late: false, wrong: true },
            answered(429),
            answered(503),
            answered(503),
            Ended::Failed("refused"),
            Ended::Abandoned,
        ] {
            recorder.ended(0, 0, ended, MS, start + 10 * MS);
        }
        let tally = &recorder.tallies[0][0];
        assert_eq!((tally.accepted, tally.late, tally.wrong, tally.good_within), (3, 1, 1, 1));
        assert_eq!(tally.statuses, BTreeMap::from([(200, 3), (429, 1), (503, 2)]));
        assert_eq!((tally.errors["refused"], tally.abandoned), (1, 1));
        assert_eq!((tally.accepted_us.len(), tally.rejected_us.len()), (3, 3));
        let mut sum = Tally::new().unwrap();
        sum.add(tally).unwrap();
        sum.add(tally).unwrap();
        assert_eq!((sum.statuses[&503], sum.rejected_us.len()), (4, 6));
    }

    #[test]
    fn the_timeline_has_latencies_of_its_own_bucket() {
        let start = Instant::now();
        let mut recorder = recorder(start);
        recorder.ended(0, 0, answered(200), 10 * MS, start + 100 * MS);
        recorder.ended(0, 0, answered(200), 30 * MS, start + 1200 * MS);
        recorder.ended(0, 0, answered(503), 2 * MS, start + 1300 * MS);
        let buckets = recorder.buckets();
        let p50: Vec<_> = buckets.iter().map(|bucket| bucket.accepted.map(|ms| ms.p50)).collect();
        assert_eq!(p50.len(), 3);
        assert!((p50[0].unwrap() - 10.0).abs() < 0.1 && p50[1].is_none());
        assert!((p50[2].unwrap() - 30.0).abs() < 0.1);
        assert_eq!((buckets[2].ok, buckets[2].status_503), (1, 1));
    }

    #[test]
    fn a_silent_target_is_lost_and_one_that_is_not_asked_is_not() {
        let start = Instant::now();
        let mut recorder = recorder(start);
        let give_up = Duration::from_secs(10);
        assert_eq!(recorder.lost(give_up, start + give_up), None);
        recorder.sending(0, 0, start, start);
        recorder.ended(0, 0, Ended::Failed("refused"), MS, start + MS);
        assert_eq!(recorder.lost(give_up, start + give_up - MS), None);
        let reason = recorder.lost(give_up, start + give_up).unwrap();
        assert!(reason.contains("nothing for 10 s (1 attempts; the last ended: refused)"));
        recorder.ended(0, 0, answered(503), MS, start + give_up);
        assert_eq!(recorder.lost(give_up, start + 2 * give_up), None);
    }

    #[test]
    fn what_is_worth_another_try() {
        for (ended, retry) in [
            (answered(200), false),
            (answered(400), false),
            (answered(500), false),
            (answered(429), true),
            (answered(503), true),
            (answered(504), true),
            (Ended::Failed("reset"), true),
            (Ended::Abandoned, false),
        ] {
            assert_eq!(ended.invites_retry(), retry, "{ended:?}");
        }
    }
}
