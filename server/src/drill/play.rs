//! One card from beginning to end: a fresh private server, a light load and a kubelet that watch it, the fault, the verdict.

use super::asking::Asked;
use super::card::{Card, Name};
use super::judge::{Answer, Check, Outcome, Seen, judge};
use super::private::{GLANCE, Private};
use super::stage::{Placed, Stage, copy_version};
use anyhow::{Context as _, Result, bail};
use balm_loadtest::steady::{self, Capacity, Fate, Load};
use balm_loadtest::watched::{Pace, Watched};
use serde_json::json;
use std::cell::{Cell, RefCell};
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// How long all is to be well before the fault.
const LEAD: Duration = Duration::from_secs(1);
/// How long all has to stay well before it counts as healed.
const SETTLED_S: f64 = 1.5;
/// How long a client waits for an answer: longer than a worker that is stopped is waited for.
const PATIENCE: Duration = Duration::from_secs(25);
/// How long a fault may take to be met: the light load comes several times a second, and slow models take their time.
const MET: Duration = Duration::from_secs(20);
/// Requests of one question under way at once.
const OUTSTANDING_MAX: usize = 1500;
/// Answers that are kept of one card.
const ANSWERS_MAX: usize = 500_000;
/// A kubelet that is stricter than the one of the manifest: it looks each second.
const PACE: Pace = Pace {
    period: Duration::from_secs(1),
    timeout: Duration::from_secs(1),
    failures: 3,
    startup_failures: 60,
};

/// How many times what a model carries is asked of it.
const OVERLOAD: f64 = 11.0;
/// For how long, in seconds, and how much of it is left out while prices are learned.
const OVERLOADED_S: f64 = 8.0;
const LEARNED_S: f64 = 1.0;
/// More requests a second than this are not sent: the generator shares the machine with the server. A model that carries more
/// than an eleventh is slowed down for it, by so many milliseconds for each row.
const SENT_MAX_PER_S: f64 = 5000.0;
const SLOWED_MS: u64 = 5;
/// Part of a model's capacity that has to be answered rightly under overload. (Full length and an idle machine give 0.95.)
const GOODPUT_MIN: f64 = 0.7;
/// How long its capacity is measured, and with how many at once.
const MEASURED: (usize, Duration) = (16, Duration::from_millis(1500));

/// Right answers in a row after which a server counts as calm again.
const CALM_ANSWERS: u32 = 30;

/// How long a lane hangs or spins: until it was given up for certain.
const HANGS_MS: u64 = 8000;
/// How much longer the slow version loads.
const SLOW_LOAD_MS: u64 = 3000;
/// What leaks, bytes a second, and how much room there is for it, bytes.
const LEAK_PER_S: f64 = 25.0 * 1024.0 * 1024.0;
const LEAK_ROOM: u64 = 512 << 20;

/// Workers that end at their start.
const DIE_AT_START: u32 = 2;

/// What all cards share.
pub(super) struct Theatre<'a> {
    pub(super) stage: &'a Stage,
    pub(super) config: Option<&'a Path>,
    /// The first one is the one that faults are for.
    pub(super) asked: &'a [Asked],
    pub(super) seed: u64,
    /// What a worker holds while all is well, bytes.
    pub(super) resident_bytes: u64,
    /// What the machine can still give, bytes.
    pub(super) available_bytes: u64,
}

/// A card that was played, or not.
pub(super) enum Played {
    /// With what came of it.
    Judged {
        outcome: Outcome,
        sentence: String,
        /// For the picture.
        answers: Vec<Answer>,
    },
    /// For a reason.
    Skipped(String),
    /// It could not be played to its end, for a reason.
    Broken(String),
}

/// What became of the fault.
#[derive(Default)]
struct Acted {
    /// What was done, for the sentence.
    what: String,
    checks: Vec<Check>,
}

/// A moment from which seconds are counted.
#[derive(Clone, Copy)]
struct Origin(Instant);

impl Origin {
    fn seconds(self, at: Instant) -> f64 {
        match at.checked_duration_since(self.0) {
            Some(after) => after.as_secs_f64(),
            None => -(self.0 - at).as_secs_f64(),
        }
    }

    fn now(self) -> f64 {
        self.seconds(Instant::now())
    }
}

impl Theatre<'_> {
    fn victim(&self) -> &Asked {
        // Whoever has nothing to ask has no theatre.
        &self.asked[0]
    }

    /// Why a card cannot be played on these models.
    fn objection(&self, card: &Card) -> Option<String> {
        let victim = self.victim();
        match card.name {
            Name::CorruptedModel if !victim.has_manifest => Some(format!(
                "{} has no SHA256SUMS, so nobody can know what its bytes should be: `balm manifest` writes one",
                victim.name
            )),
            Name::SlowLoad if !victim.follows_latest => Some(format!(
                "the model.toml of {} says which versions serve, so a new one would not be loaded",
                victim.name
            )),
            // What is promised of a leak must not be paid for by others on this machine.
            Name::MemoryLeak if self.available_bytes < 2 * LEAK_ROOM => Some(format!(
                "this machine has {} MiB of memory left, and {} are wanted",
                self.available_bytes >> 20,
                (2 * LEAK_ROOM) >> 20
            )),
            _ => None,
        }
    }

    /// Plays a card.
    pub(super) async fn play(&self, card: &Card) -> Result<Played> {
        if let Some(reason) = self.objection(card) {
            return Ok(Played::Skipped(reason));
        }
        let disk_full = card.name == Name::FullDisk;
        let limit = self.resident_bytes + LEAK_ROOM;
        let variables = match card.name {
            Name::MemoryLeak => vec![("BALM_ADMISSION_MEMORY_LIMIT_BYTES", limit.to_string())],
            _ => Vec::new(),
        };
        let server = Private::start(self.stage, self.config, &variables, disk_full).await?;
        let scene = Scene { theatre: self, card, server: &server };
        let played = scene.play().await;
        // A version that was there for this card only.
        let _ = fs::remove_dir_all(self.next_version());
        let (mut seen, what) = played
            .with_context(|| format!("card {}: {}", card.name.as_str(), server.last_words()))?;
        if let Err(error) = server.stop().await {
            seen.further.push(Check::holds(
                "the server ends",
                &format!("{error:#}"),
                "when told to",
                false,
            ));
        }
        let outcome = judge(&card.bounds, &seen);
        let sentence = outcome.sentence(&what);
        Ok(Played::Judged { outcome, sentence, answers: seen.answers })
    }

    /// Where a newer version of the model lies, when there is one.
    fn next_version(&self) -> PathBuf {
        let victim = self.victim();
        self.stage.models().join(&victim.name).join((victim.version + 1).to_string())
    }
}

/// A card, and the server that it is played on.
struct Scene<'a> {
    theatre: &'a Theatre<'a>,
    card: &'a Card,
    server: &'a Private,
}

impl Scene<'_> {
    async fn play(&self) -> Result<(Seen, String)> {
        self.server.wait_ready().await?;
        let capacity = match self.card.name {
            Name::Overload => Some(self.capacity().await?),
            _ => None,
        };
        let overload = capacity.map(|(capacity, _)| capacity.per_s * OVERLOAD);
        let kubelet = Watched::start(self.server.management, PACE)?;
        let begun = Origin(Instant::now());
        let seen = Rc::new(RefCell::new(Seen::default()));
        let enough = Rc::new(Cell::new(false));
        let heard = Rc::clone(&seen);
        let load = steady::offer(self.load(overload), Rc::clone(&enough), move |answer| {
            let mut seen = heard.borrow_mut();
            if seen.answers.len() < ANSWERS_MAX {
                // Moments are counted from the fault later on; until then, from here.
                let offset = seen.offset_s;
                seen.answers.push(Answer {
                    question: answer.question,
                    sent_s: begun.seconds(answer.sent_at) - offset,
                    ended_s: begun.seconds(answer.ended_at) - offset,
                    fate: answer.fate,
                });
            }
        });
        let direct = async {
            let acted = self.direct(begun, &seen).await;
            enough.set(true);
            acted
        };
        let (offered, acted) = tokio::join!(load, direct);
        let (offered, acted) = (offered?, acted?);
        let kubelet = kubelet.finish(begun.0);
        let mut seen = seen.take();
        seen.restarts = kubelet.restarts;
        seen.not_sent = offered.not_sent;
        seen.unanswered = offered.unanswered;
        seen.further.extend(acted.checks);
        let mut what = acted.what;
        if let Some((capacity, slowed)) = capacity {
            let (asked, check) = overloaded(&seen, capacity.per_s);
            seen.further.push(check);
            let name = &self.theatre.victim().name;
            let slowed = if slowed {
                format!(
                    " (slowed down to {SLOWED_MS} ms a row, so that this machine can send that much)"
                )
            } else {
                String::new()
            };
            what = format!(
                "{name}{slowed} was asked {asked:.0} times a second for {OVERLOADED_S:.0} s and carries {:.0}",
                capacity.per_s
            );
        }
        Ok((seen, what))
    }

    /// What the model carries, slowed down where that is more than can be sent eleven times.
    async fn capacity(&self) -> Result<(Capacity, bool)> {
        let (at_once, length) = MEASURED;
        let victim = self.theatre.victim();
        let measure =
            || steady::capacity(self.server.address, &victim.question.request, at_once, length);
        let own = measure().await?;
        if own.per_s * OVERLOAD <= SENT_MAX_PER_S {
            return Ok((own, false));
        }
        self.place(json!({"kind": "slow_run", "model": victim.name, "ms_per_row": SLOWED_MS, "always": true}))?;
        let slowed = measure().await?;
        self.calm().await?;
        Ok((slowed, true))
    }

    /// Waits until what was measured is over: one after the other so many in a row are answered.
    async fn calm(&self) -> Result<()> {
        let question = &self.theatre.victim().question.request;
        let (mut in_a_row, begun) = (0, Instant::now());
        while in_a_row < CALM_ANSWERS {
            let reply = steady::ask(self.server.address, question.clone(), PATIENCE).await?;
            in_a_row = if reply.status == 200 { in_a_row + 1 } else { 0 };
            if begun.elapsed() > PATIENCE {
                bail!(
                    "still turning requests away {} s after its capacity was measured",
                    PATIENCE.as_secs()
                );
            }
            sleep(GLANCE).await;
        }
        Ok(())
    }

    fn load(&self, overload: Option<f64>) -> Load {
        let asked = self.theatre.asked;
        let light: Vec<f64> = asked.iter().map(|asked| asked.per_s).collect();
        let mut stretches = vec![(LEAD + self.card.patience, light.clone())];
        if let Some(per_s) = overload {
            let mut heavy = light.clone();
            heavy[0] = per_s;
            let length = Duration::from_secs_f64(OVERLOADED_S);
            stretches = vec![(LEAD, light.clone()), (length, heavy), (self.card.patience, light)];
        }
        Load {
            address: self.server.address,
            questions: asked.iter().map(|asked| asked.question.clone()).collect(),
            stretches,
            patience: PATIENCE,
            outstanding_max: OUTSTANDING_MAX,
            seed: self.theatre.seed,
        }
    }

    /// Waits a moment, does what the card is about, and watches until there is nothing more to be seen.
    async fn direct(&self, begun: Origin, seen: &RefCell<Seen>) -> Result<Acted> {
        while begun.0.elapsed() < LEAD {
            self.look(begun, seen).await;
            sleep(GLANCE).await;
        }
        let before =
            seen.borrow().answers.iter().find(|answer| answer.fate != Fate::Right).copied();
        if let Some(answer) = before {
            bail!("before the fault a request ended with {:?}", answer.fate);
        }
        let origin = Origin(Instant::now());
        seen.borrow_mut().shift(begun.seconds(origin.0));
        if self.card.name == Name::Overload {
            seen.borrow_mut().lasts_s = OVERLOADED_S;
        }
        let done = Cell::new(false);
        let act = async {
            let acted = self.act(origin, seen).await;
            done.set(true);
            acted
        };
        let watch = async {
            let patience = self.card.patience.as_secs_f64();
            loop {
                self.look(origin, seen).await;
                let now = origin.now();
                let settled = || seen.borrow().is_over(&self.card.bounds, now, SETTLED_S);
                if done.get() && settled() || now > patience {
                    return;
                }
                sleep(GLANCE).await;
            }
        };
        let (acted, ()) = tokio::join!(act, watch);
        acted
    }

    /// Takes down what the server says of itself. One that says nothing is not ready.
    async fn look(&self, origin: Origin, seen: &RefCell<Seen>) {
        let status = self.server.status().await;
        let mut seen = seen.borrow_mut();
        let before = seen.sights.last().map(|(_, sight)| *sight).unwrap_or_default();
        let sight = match status {
            Ok(status) => status.sight(&self.theatre.victim().name),
            Err(_) => super::judge::Sight { ready: false, whole: false, ..before },
        };
        seen.sights.push((origin.now(), sight));
        // The first refusal is how overload is noticed.
        if self.card.name == Name::Overload && seen.told_s.is_none() {
            let refused = |answer: &&Answer| {
                answer.ended_s >= 0.0 && matches!(answer.fate, Fate::Refused(503 | 429))
            };
            seen.told_s = seen.answers.iter().find(refused).map(|answer| answer.ended_s);
        }
    }

    async fn act(&self, origin: Origin, seen: &RefCell<Seen>) -> Result<Acted> {
        let victim = self.theatre.victim();
        let name = &victim.name;
        let run = |kind: &str| json!({"kind": kind, "model": name});
        let hang = |kind: &str| json!({"kind": kind, "model": name, "ms": HANGS_MS});
        let signal = |signal: &str| json!({"kind": "signal", "model": name, "signal": signal});
        let what = match self.card.name {
            // The load itself is the fault.
            Name::Overload => String::new(),
            Name::HungLane => self.happens(hang("block"), format!("a lane of {name} hung")).await?,
            Name::SpinningLane => {
                self.happens(hang("spin"), format!("a lane of {name} spun")).await?
            }
            Name::Panic => self.happens(run("panic"), format!("a run of {name} panicked")).await?,
            Name::Crash => {
                self.happens(
                    signal("SIGSEGV"),
                    format!("the worker crashed (SIGSEGV) in a run of {name}"),
                )
                .await?
            }
            Name::FullDisk => {
                let what = "nothing could be written, and the worker crashed".to_owned();
                self.happens(signal("SIGSEGV"), what).await?
            }
            Name::Stop => {
                self.happens(signal("SIGSTOP"), "the worker was stopped (SIGSTOP)".to_owned())
                    .await?
            }
            Name::CrashLoop => {
                self.place(json!({"kind": "die_at_start", "times": DIE_AT_START}))?;
                let what = format!(
                    "the worker was killed, and the next {DIE_AT_START} died at their start"
                );
                self.happens(signal("SIGKILL"), what).await?
            }
            Name::CorruptedModel => return self.corrupt(origin, seen).await,
            Name::SlowLoad => return self.load_slowly().await,
            Name::MemoryLeak => self.leak(seen).await?,
        };
        Ok(Acted { what, ..Acted::default() })
    }

    fn place(&self, fault: serde_json::Value) -> Result<Placed> {
        self.theatre.stage.place(&fault)
    }

    /// Places a fault and waits until it is met.
    async fn happens(&self, fault: serde_json::Value, what: String) -> Result<String> {
        let placed = self.place(fault)?;
        let begun = Instant::now();
        while !placed.happened() {
            if begun.elapsed() > MET {
                placed.end();
                bail!("the fault was not met within {} s", MET.as_secs());
            }
            sleep(GLANCE / 5).await;
        }
        Ok(what)
    }

    /// Has runs keep memory until another worker serves.
    async fn leak(&self, seen: &RefCell<Seen>) -> Result<String> {
        let victim = self.theatre.victim();
        let bytes = (LEAK_PER_S / victim.per_s) as u64;
        let leak = self
            .place(json!({"kind": "leak", "model": victim.name, "bytes": bytes, "always": true}))?;
        let begun = Instant::now();
        while seen.borrow().workers_replaced() == 0 && begun.elapsed() < self.card.patience {
            sleep(GLANCE).await;
        }
        leak.end();
        Ok(format!(
            "runs of {} kept {:.1} MiB each, and the worker was replaced before {} MiB were used",
            victim.name,
            bytes as f64 / f64::from(1 << 20),
            (self.theatre.resident_bytes + LEAK_ROOM) >> 20
        ))
    }

    /// Changes one byte of the model and has it loaded; then mends it.
    async fn corrupt(&self, origin: Origin, seen: &RefCell<Seen>) -> Result<Acted> {
        let victim = self.theatre.victim();
        let file = victim.folder(&self.theatre.stage.models()).join("model.onnx");
        let whole = fs::read(&file).with_context(|| file.display().to_string())?;
        let mut damaged = whole.clone();
        let middle = damaged.len() / 2;
        if let Some(byte) = damaged.get_mut(middle) {
            *byte ^= 1;
        }
        fs::write(&file, damaged)?;
        let (status, text) = self.server.load(&victim.name).await?;
        seen.borrow_mut().told_s = Some(origin.now());
        fs::write(&file, whole)?;
        let refused = Check::holds(
            "the load of the damaged model",
            &format!("status {status}: {}", balm_inference::clip::clipped(&text)),
            "refused",
            status >= 400,
        );
        let (status, text) = self.server.load(&victim.name).await?;
        let mended = Check::holds(
            "the load of the mended model",
            &format!(
                "status {status}{}",
                if status == 200 { String::new() } else { format!(": {text}") }
            ),
            "status 200",
            status == 200,
        );
        let what = format!(
            "one byte of {}, version {}, was changed on disk and the load of it refused",
            victim.name, victim.version
        );
        Ok(Acted { what, checks: vec![refused, mended] })
    }

    /// Adds a version that takes long to load.
    async fn load_slowly(&self) -> Result<Acted> {
        let victim = self.theatre.victim();
        let next = victim.version + 1;
        let from = victim.folder(&self.theatre.stage.models());
        copy_version(&from, &self.theatre.next_version())?;
        let slow =
            json!({"kind": "slow_load", "model": victim.name, "ms": SLOW_LOAD_MS, "at": "load"});
        let slow = self.place(slow)?;
        let begun = Instant::now();
        let (status, text) = self.server.load(&victim.name).await?;
        let took = begun.elapsed();
        let found = self.server.status().await?.sight(&victim.name).version;
        let what = format!(
            "version {next} of {} took {:.1} s to load, and then took over",
            victim.name,
            took.as_secs_f64()
        );
        let checks = vec![
            Check::holds(
                "the load",
                &format!("status {status} {text}"),
                "status 200",
                status == 200,
            ),
            Check::holds(
                "the load was slow",
                &slow.happened().to_string(),
                "true",
                slow.happened(),
            ),
            Check::holds(
                "the version that serves",
                &found.to_string(),
                &next.to_string(),
                found == next,
            ),
        ];
        Ok(Acted { what, checks })
    }
}

/// How much was asked for of an overloaded model, requests a second, and whether enough of it was answered.
fn overloaded(seen: &Seen, capacity: f64) -> (f64, Check) {
    let length = OVERLOADED_S - LEARNED_S;
    let within = |at: f64| (LEARNED_S..OVERLOADED_S).contains(&at);
    let of_victim = || seen.answers.iter().filter(|answer| answer.question == 0);
    let asked = of_victim().filter(|answer| within(answer.sent_s)).count() as f64 / length;
    let good = of_victim().filter(|answer| within(answer.ended_s) && answer.fate == Fate::Right);
    let ratio = good.count() as f64 / length / capacity.max(f64::MIN_POSITIVE);
    let check = Check::holds(
        "right answers under overload, beside what the model carries",
        &format!("{ratio:.2}"),
        &format!("at least {GOODPUT_MIN}"),
        ratio >= GOODPUT_MIN,
    );
    (asked, check)
}
