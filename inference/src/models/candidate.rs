//! The route of a version: discovered → verifying → loading → warming → probing → ready.

use super::attempt::Attempt;
use super::canary::CanaryWatch;
use super::probe::probe;
use super::run_limit::RunLimit;
use super::sharing::{Asked, Sharing};
use super::{Inner, Model};
use crate::admission::Patience;
use crate::effective::EffectiveSettings;
use crate::engine::{LoadToken, ModelBytes, Session, SessionOptions};
use crate::golden::Golden;
use crate::integrity::{
    Digest, GOLDEN_FILE, IntegrityError, Progress, ReadOptions, VerifiedModel, read_version,
};
use crate::lane::{LaneSettings, Lanes};
use crate::recorder::identity;
use crate::settings::ModelSettings;
use crate::version::{LoadTimes, Serving, Version};
use balm_probes::ModelState;
use parking_lot::Mutex;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

/// Why a candidate does not serve, and what it becomes.
pub(super) struct Refusal {
    pub(super) state: ModelState,
    pub(super) reason: String,
}

impl Refusal {
    pub(super) fn failed(reason: impl ToString) -> Self {
        Refusal { state: ModelState::Failed, reason: reason.to_string() }
    }

    /// It did harm, and is known by its digest.
    fn quarantined(reason: String) -> Self {
        Refusal { state: ModelState::Quarantined, reason }
    }
}

/// A session that has answered the golden requests, and what came with it.
struct Proved {
    session: Box<dyn Session>,
    settings: EffectiveSettings,
    times: LoadTimes,
    golden: Golden,
    asked: Asked,
    sharing: Sharing,
    limit: RunLimit,
}

/// A version on its way to serve.
pub(super) struct Candidate {
    pub(super) inner: Arc<Inner>,
    pub(super) model: Arc<Model>,
    pub(super) version: Arc<Version>,
    pub(super) settings: ModelSettings,
    pub(super) attempt: Arc<Attempt>,
    /// Whether somebody asked for it: then it is tried although it did harm before.
    pub(super) is_asked_for: bool,
}

impl Version {
    /// A step of a load. A version that serves goes on in its state while its successor is made.
    fn step(&self, inner: &Inner, state: ModelState) {
        if !self.state().serves() {
            self.enter(state, None);
            inner.changed();
        }
    }
}

impl Candidate {
    /// Brings the version to serve with one lane; gives what is still to be built. `None` when nothing had changed.
    pub(super) fn load(self) -> Result<Option<MoreLanes>, Refusal> {
        let (inner, version) = (&self.inner, &self.version);
        let step = |state| self.attempt.unless_given_up(|| version.step(inner, state));
        let mut times = LoadTimes::default();

        step(ModelState::Verifying)?;
        let begun = Instant::now();
        let reader = Reader::of(&self)?;
        let read = reader.read(inner, &self.attempt.progress);
        inner.metrics.integrity(
            &self.model.name,
            match &read {
                Ok(verified) if verified.verified => "verified",
                Ok(_) => "unverified",
                Err(_) => "refused",
            },
        );
        let verified = Arc::new(read.map_err(Refusal::failed)?);
        times.read = begun.elapsed();
        let digest = verified.digest.to_string();
        let proved_before = self.attempt.unless_given_up(|| version.is(&digest))?;
        if !self.is_asked_for
            && let Some(why) = inner.harm_of(&self.model.name, &digest)
        {
            return Err(Refusal::quarantined(format!(
                "{why}; not tried again until its files change or somebody asks for its load"
            )));
        }
        let effective = EffectiveSettings::resolve(&self.settings, &inner.options.defaults);
        if let Some(before) = version.serving()
            && before.digest == digest
            && before.settings == effective
            && before.lanes.condition().verdict().0.serves()
            && before.lanes.condition().trouble.is_none()
            && before.is_trusted()
        {
            tracing::info!(model = %self.model.name, version = version.number, "already serving these bytes");
            self.attempt.unless_given_up(|| version.note(before.placement.degraded.clone()))?;
            return Ok(None);
        }
        let golden = match (&verified.golden, &self.settings.golden) {
            (Some(text), _) => Golden::parse(text).map_err(Refusal::failed)?,
            (None, None) => Golden::default(),
            // Serving unjudged what was to be judged would be the worse surprise.
            (None, Some(name)) => {
                return Err(Refusal::failed(format!(
                    "model.toml names {name:?} as golden requests, the version folder has no such file, or its manifest does not list it"
                )));
            }
        };

        step(ModelState::Loading)?;
        let begun = Instant::now();
        let bytes = bytes_of(&self.model.name, &verified);
        let built = inner.engine.build(bytes, &effective.session, &self.attempt.token);
        let mut session = built.map_err(Refusal::failed)?;
        times.build = begun.elapsed();

        step(ModelState::Warming)?;
        let begun = Instant::now();
        let quarantined = |reason: String| {
            let reason = format!("digest {digest}: {reason}");
            // What these bytes answered rightly before is not their fault now, but that of the process.
            if proved_before { Refusal::failed(reason) } else { Refusal::quarantined(reason) }
        };
        // The first run of a session allocates, which is what warming is for; its answer is judged like the others.
        let (first, others) = golden.cases.split_at(golden.cases.len().min(1));
        let limit = RunLimit::new(effective.max_deadline);
        probe(session.as_mut(), first, &limit).map_err(quarantined)?;
        step(ModelState::Probing)?;
        probe(session.as_mut(), others, &limit).map_err(quarantined)?;
        let asked = Asked::of(&effective, session.contract()).map_err(Refusal::failed)?;
        let sharing =
            asked.first(session.as_mut(), &golden.cases, &limit).map_err(Refusal::failed)?;
        times.probe = begun.elapsed();

        let proved = Proved { session, settings: effective, times, golden, asked, sharing, limit };
        self.serve(proved, &verified, reader).map(Some)
    }

    /// Puts the proven session to work as the first lane. The others are still to be built.
    fn serve(
        &self,
        proved: Proved,
        verified: &Arc<VerifiedModel>,
        reader: Reader,
    ) -> Result<MoreLanes, Refusal> {
        let Proved { session, settings, times, golden, asked, sharing, limit } = proved;
        let (inner, model, version) = (&self.inner, &self.model, &self.version);
        let placement = session.placement().clone();
        let rebuild = {
            let (engine, options) = (Arc::clone(&inner.engine), settings.session.clone());
            let (digest, inner) = (verified.digest, Arc::downgrade(inner));
            let name = model.name.clone();
            move || {
                let inner = inner.upgrade().ok_or("the server has ended")?;
                let again = reader.read_again(&inner, digest)?;
                engine
                    .build(bytes_of(&name, &again), &options, &LoadToken::default())
                    .map_err(|error| error.to_string())
            }
        };
        let watch = Arc::new(Watch {
            inner: Arc::downgrade(inner),
            model: Arc::downgrade(model),
            version: Arc::downgrade(version),
            lanes: OnceLock::new(),
        });
        let changed = {
            let watch = Arc::clone(&watch);
            move || lanes_changed(&watch)
        };
        let lanes = Arc::new(Lanes::new(
            model.name.clone(),
            LaneSettings {
                version: version.number,
                identity: identity(&verified.digest.to_string()),
                bytes: verified.bytes_read,
                load: times.read + times.build + times.probe,
                load_runs: times.probe,
                wanted: u32::try_from(settings.lanes).unwrap_or(1),
                queue_capacity: settings.max_queue,
                patience: Patience {
                    fixed: settings.max_wait,
                    default_deadline: settings.default_deadline,
                },
                rows_max: settings.batch_rows,
                delay: settings.batch_delay,
                adaptive: settings.adaptive_lanes.unwrap_or_else(|| placement.is_on_a_device()),
            },
            asked.padding.clone(),
            inner.metrics.version(&model.name, version.number),
            Box::new(rebuild),
            Box::new(changed),
            Arc::clone(&inner.healing),
        ));
        let serving = Arc::new(Serving {
            model: model.name.clone(),
            version: version.number,
            contract: session.contract().clone(),
            placement: placement.clone(),
            digest: verified.digest.to_string(),
            short_digest: verified.digest.to_string().into_bytes().into_iter().take(12).collect(),
            verified: verified.verified,
            took_over: model
                .serving(None)
                .is_ok_and(|before| before.digest != verified.digest.to_string())
                .then(Instant::now),
            load: times,
            beside: OnceLock::new(),
            canary: Mutex::new(CanaryWatch::new(golden.cases.first(), session.contract())),
            example: golden.cases.first().map(|case| case.inputs.clone()),
            settings,
            lanes: Arc::clone(&lanes),
        });
        let unproved = asked.leaves_open(&sharing).then_some((asked, golden));
        sharing.tell(&lanes);
        self.attempt.serves(|| {
            self.record(&serving);
            inner.healing.watch(&lanes);
            if !lanes.join(0, session) {
                return Err(Refusal::failed("the thread of its first lane could not be started"));
            }
            let _ = watch.lanes.set(Arc::downgrade(&lanes));
            model.gate.set_limit(serving.settings.max_in_flight);
            version.serve(Some(Arc::clone(&serving)));
            version.proved();
            inner.forget_harm(&model.name, &serving.digest);
            let (state, reason) = lanes.condition().verdict();
            version.enter(state, reason);
            model.elect();
            inner.changed();
            Ok(())
        })?;
        Ok(MoreLanes {
            inner: Arc::clone(inner),
            lanes,
            verified: Arc::clone(verified),
            unproved,
            limit,
            options: serving.settings.session.clone(),
        })
    }

    fn record(&self, serving: &Serving) {
        let (model, version) = (&self.model.name, self.version.number);
        let metrics = &self.inner.metrics;
        metrics.load_phase(model, version, "read", serving.load.read.as_secs_f64());
        metrics.load_phase(model, version, "build", serving.load.build.as_secs_f64());
        metrics.load_phase(model, version, "probe", serving.load.probe.as_secs_f64());
        tracing::info!(
            model = %model,
            version,
            digest = %serving.digest,
            integrity = if serving.verified { "verified" } else { "unverified" },
            provider = %serving.placement.providers.first().map(ToString::to_string).unwrap_or_default(),
            lanes = serving.settings.lanes,
            threads = serving.settings.session.threads,
            read_ms = serving.load.read.as_millis(),
            build_ms = serving.load.build.as_millis(),
            probe_ms = serving.load.probe.as_millis(),
            "version ready"
        );
    }
}

/// Lanes came or went: the version's state follows, and one that has lost its last lane makes way for another.
fn lanes_changed(watch: &Watch) {
    let (Some(inner), Some(model), Some(version)) =
        (watch.inner.upgrade(), watch.model.upgrade(), watch.version.upgrade())
    else {
        return;
    };
    let Some(serving) = version.serving() else { return };
    let Some(lanes) = watch.lanes.get().and_then(Weak::upgrade) else { return };
    if !Arc::ptr_eq(&serving.lanes, &lanes) {
        // A successor serves; these lanes are on their way out and speak for nobody.
        return;
    }
    let (state, reason) = lanes.condition().verdict();
    version.enter(state, reason);
    if state == ModelState::Failed {
        version.serve(None);
    }
    model.elect();
    inner.changed();
}

/// Whom the lanes of a version report to, held weakly: they must not keep alive what owns them.
struct Watch {
    inner: Weak<Inner>,
    model: Weak<Model>,
    version: Weak<Version>,
    lanes: OnceLock<Weak<Lanes>>,
}

/// Where a version's bytes come from, the first time and again.
struct Reader {
    folder: PathBuf,
    options: ReadOptions,
}

impl Reader {
    fn of(candidate: &Candidate) -> Result<Self, Refusal> {
        let options = &candidate.inner.options;
        let settings = &candidate.settings;
        Ok(Reader {
            folder: candidate
                .inner
                .repository
                .version_dir(&candidate.model.name, candidate.version.number),
            options: ReadOptions {
                policy: settings.policy(options.integrity).map_err(Refusal::failed)?,
                max_bytes: options.max_file_bytes,
                golden_file: Some(settings.golden.clone().unwrap_or(GOLDEN_FILE.to_owned())),
                ..ReadOptions::default()
            },
        })
    }

    fn read(&self, inner: &Inner, progress: &Progress) -> Result<VerifiedModel, IntegrityError> {
        read_version(inner.repository.root(), &self.folder, &self.options, progress)
    }

    /// Reads again for a lane that is replaced, and takes the bytes only if they are the same. (Keeping them would hold
    /// every model in memory twice, for ever.)
    fn read_again(&self, inner: &Inner, digest: Digest) -> Result<VerifiedModel, String> {
        let again = self.read(inner, &Progress::default()).map_err(|error| error.to_string())?;
        if again.digest != digest {
            return Err(format!(
                "the files on disk are no longer those that were loaded (expected digest {digest}, found {})",
                again.digest
            ));
        }
        Ok(again)
    }
}

/// The sessions that a version still lacks when it begins to serve.
pub(super) struct MoreLanes {
    inner: Arc<Inner>,
    lanes: Arc<Lanes>,
    verified: Arc<VerifiedModel>,
    /// What is to be tried with the first of them, to know whether requests may share runs, and be padded for it.
    unproved: Option<(Asked, Golden)>,
    limit: RunLimit,
    options: SessionOptions,
}

impl MoreLanes {
    /// Builds them one after the other on this thread: what the building of one leaves in the allocator serves the next,
    /// where threads of their own would keep it each. Then the bytes of the model are let go.
    pub(super) fn build(mut self) {
        for index in 1..self.lanes.condition().wanted {
            if self.lanes.queue.is_closed() {
                return;
            }
            let build = || {
                let bytes = bytes_of(&self.lanes.label, &self.verified);
                let token = LoadToken::default();
                let built = self.inner.engine.build(bytes, &self.options, &token);
                built.map_err(|error| error.to_string())
            };
            let built = catch_unwind(AssertUnwindSafe(build))
                .unwrap_or_else(|_panic| Err("building it panicked".to_owned()));
            let proved = built.and_then(|mut session| {
                if let Some((asked, golden)) = self.unproved.take() {
                    asked.all(session.as_mut(), &golden.cases, &self.limit)?.tell(&self.lanes);
                }
                Ok(session)
            });
            match proved {
                Ok(session) => {
                    self.lanes.join(index, session);
                }
                Err(reason) => {
                    self.lanes.lost(format!("lane {index} could not be built: {reason}"))
                }
            }
        }
    }
}

fn bytes_of<'a>(name: &'a str, verified: &'a VerifiedModel) -> ModelBytes<'a> {
    ModelBytes {
        name,
        model: &verified.model,
        external: &verified.external,
        unranked: &verified.graph.unranked,
    }
}
