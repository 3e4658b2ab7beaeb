//! The route of a model: discovered → verifying → loading → warming → probing → ready.
//!
//! A load runs on a thread of its own; whoever asked for it waits, and says every ten seconds how far it is.

use super::{ControlError, Inner, Model, Models};
use crate::effective::EffectiveSettings;
use crate::engine::{ModelBytes, Session};
use crate::golden::{Golden, GoldenCase};
use crate::integrity::{
    GOLDEN_FILE, IntegrityError, Progress, ReadOptions, VerifiedModel, read_version,
};
use crate::lane::Lanes;
use crate::repository::ModelEntry;
use crate::settings::{ModelSettings, VersionPolicy};
use crate::tensor::NamedTensor;
use crate::version::{LoadTimes, Serving, Version};
use balm_probes::ModelState;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// A load that takes longer says so this often.
const STILL_LOADING_EVERY: Duration = Duration::from_secs(10);

/// Why a candidate does not serve, and what it becomes.
struct Refusal {
    state: ModelState,
    reason: String,
}

impl Refusal {
    fn failed(reason: impl ToString) -> Self {
        Refusal { state: ModelState::Failed, reason: reason.to_string() }
    }
}

impl Models {
    /// Loads every model of the repository and declares it: readiness is judged by these. Blocks.
    ///
    /// A model that fails is in the report with its reason; it stops no other.
    ///
    /// # Errors
    /// [`ControlError::Repository`] when the repository cannot be read at all.
    pub fn load_all(&self) -> Result<(), ControlError> {
        let scan = self
            .0
            .repository
            .scan()
            .map_err(|error| ControlError::Repository(error.to_string()))?;
        for warning in &scan.warnings {
            tracing::warn!("{warning}");
        }
        let entries = scan.models;
        for entry in &entries {
            let model = self.0.entry(&entry.name, true);
            model.set_versions(&self.0, &entry.versions);
        }
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..self.0.options.parallel_loads.clamp(1, 16) {
                scope.spawn(|| {
                    while let Some(entry) = entries.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let model = self.0.entry(&entry.name, true);
                        if let Err(error) = self.0.load_entry(&model, entry) {
                            tracing::error!(model = %entry.name, %error, "model not loaded");
                        }
                    }
                });
            }
        });
        Ok(())
    }

    /// Reads the repository again for one model and loads what its version policy asks for. Blocks.
    ///
    /// Readiness is not judged by a model that was not there at the start, unless there was none at all.
    ///
    /// # Errors
    /// [`ControlError`]; what served before goes on serving.
    pub fn load(&self, name: &str) -> Result<(), ControlError> {
        let Some(entry) = self.0.repository.find(name) else {
            return Err(ControlError::UnknownModel(name.chars().take(128).collect()));
        };
        let model = self.0.entry(&entry.name, self.declares_nothing());
        self.0.load_entry(&model, &entry)?;
        model.withdrawn.store(false, Ordering::Release);
        self.0.changed();
        Ok(())
    }

    /// Whether the server was started without any model. Then the first one that is loaded is what it is there for.
    fn declares_nothing(&self) -> bool {
        self.all().iter().all(|model| !model.declared.load(Ordering::Acquire))
    }

    /// Lets a model go: what waits is still answered, then its sessions end. Blocks only for the bookkeeping.
    ///
    /// Readiness is no longer judged by it: letting one model go is a choice, not a failure. A server without any
    /// declared model is not ready.
    ///
    /// # Errors
    /// [`ControlError::UnknownModel`].
    pub fn unload(&self, name: &str) -> Result<(), ControlError> {
        let model = self
            .model(name)
            .map_err(|_| ControlError::UnknownModel(name.chars().take(128).collect()))?;
        let _control = model.control.lock();
        model.withdrawn.store(true, Ordering::Release);
        for version in model.versions.load().iter() {
            version.unload();
        }
        model.elect();
        self.0.changed();
        tracing::info!(model = %model.name, "model unloaded");
        Ok(())
    }
}

impl Model {
    /// Makes the list of versions that of the repository; versions that serve stay, whatever the disk says.
    fn set_versions(&self, inner: &Inner, numbers: &[u64]) {
        let before = self.versions.load();
        let wanted: BTreeSet<u64> = numbers
            .iter()
            .copied()
            .chain(before.iter().filter(|version| version.serving().is_some()).map(|v| v.number))
            .collect();
        let next = wanted
            .into_iter()
            .map(|number| {
                before
                    .iter()
                    .find(|version| version.number == number)
                    .map_or_else(|| Version::new(number), Arc::clone)
            })
            .collect();
        self.versions.store(Arc::new(next));
        inner.changed();
    }
}

impl Version {
    fn unload(&self) {
        let state = self.state();
        if state == ModelState::Unloaded {
            return;
        }
        if state != ModelState::Discovered {
            self.enter(ModelState::Unloading, None);
        }
        self.serve(None);
        self.enter(ModelState::Unloaded, None);
    }

    /// Back to the start of the route, whatever came before.
    fn rediscover(&self) {
        match self.state() {
            ModelState::Failed | ModelState::Quarantined | ModelState::Unloaded => {
                self.enter(ModelState::Discovered, None);
            }
            _ => {}
        }
    }

    /// A step of a load. A version that serves goes on in its state while its successor is made.
    fn step(&self, inner: &Inner, state: ModelState) {
        if !self.state().serves() {
            self.enter(state, None);
            inner.changed();
        }
    }
}

impl Inner {
    fn load_entry(
        self: &Arc<Self>,
        model: &Arc<Model>,
        entry: &ModelEntry,
    ) -> Result<(), ControlError> {
        let _control = model.control.lock();
        for warning in &entry.warnings {
            tracing::warn!(model = %model.name, "{warning}");
        }
        model.set_versions(self, &entry.versions);
        let versions = model.versions.load_full();
        let settings = match (&entry.settings, entry.problem()) {
            (Ok(settings), None) => settings,
            (_, problem) => {
                let reason = problem.unwrap_or_else(|| "its settings cannot be read".to_owned());
                for version in versions.iter().filter(|version| version.serving().is_none()) {
                    version.rediscover();
                    version.enter(ModelState::Failed, Some(reason.clone()));
                }
                self.changed();
                return Err(self.refused(model, reason));
            }
        };
        let mut reasons = Vec::new();
        let mut kept = BTreeSet::new();
        for number in settings.versions.candidates(&entry.versions) {
            let Some(version) = versions.iter().find(|version| version.number == number) else {
                reasons.push(format!(
                    "version {number}: model.toml asks for it, the repository has no such folder"
                ));
                continue;
            };
            match self.load_version(model, version, settings) {
                Ok(()) => {
                    kept.insert(number);
                    if settings.versions == VersionPolicy::Latest {
                        break;
                    }
                }
                Err(reason) => reasons.push(format!("version {number}: {reason}")),
            }
        }
        if kept.is_empty() {
            self.changed();
            return Err(self.refused(model, reasons.join("; ")));
        }
        // Only now, when a successor serves, the versions that the policy no longer asks for go.
        for version in versions.iter().filter(|version| !kept.contains(&version.number)) {
            if version.serving().is_some() || version.state() == ModelState::Discovered {
                version.unload();
                version.note(Some("the model's version policy does not ask for it".to_owned()));
            }
        }
        model.elect();
        self.changed();
        Ok(())
    }

    fn refused(&self, model: &Model, reason: String) -> ControlError {
        ControlError::Load { model: model.name.clone(), reason }
    }

    /// Loads one version on a thread of its own, and says every ten seconds how far it is.
    fn load_version(
        self: &Arc<Self>,
        model: &Arc<Model>,
        version: &Arc<Version>,
        settings: &ModelSettings,
    ) -> Result<(), String> {
        version.rediscover();
        let progress = Arc::new(Progress::default());
        let begun = Instant::now();
        let (sender, receiver) = mpsc::sync_channel(1);
        let name = format!("load-{}", model.name).chars().take(15).collect();
        let spawned = thread::Builder::new().name(name).spawn({
            let (inner, model, version) =
                (Arc::clone(self), Arc::clone(model), Arc::clone(version));
            let (settings, progress) = (settings.clone(), Arc::clone(&progress));
            move || {
                let candidate = Candidate { inner, model, version, settings, progress };
                let _ = sender.send(candidate.load());
            }
        });
        let result = match spawned {
            Err(error) => {
                Err(Refusal::failed(format!("its loading thread did not start: {error}")))
            }
            Ok(_detached) => loop {
                match receiver.recv_timeout(STILL_LOADING_EVERY) {
                    Ok(result) => break result,
                    Err(mpsc::RecvTimeoutError::Timeout) => tracing::info!(
                        model = %model.name,
                        version = version.number,
                        phase = version.state().as_str(),
                        read_bytes = progress.bytes_done(),
                        of_bytes = progress.bytes_total(),
                        elapsed_s = begun.elapsed().as_secs(),
                        "still loading"
                    ),
                    Err(mpsc::RecvTimeoutError::Disconnected) => {
                        break Err(Refusal::failed("its loading thread panicked"));
                    }
                }
            },
        };
        self.metrics.loaded(&model.name, version.number, result.is_ok());
        match result {
            Ok(()) => Ok(()),
            Err(refusal) => {
                tracing::error!(
                    model = %model.name,
                    version = version.number,
                    state = refusal.state.as_str(),
                    reason = refusal.reason,
                    "version refused"
                );
                if version.serving().is_some() {
                    version.note(Some(format!("a reload was refused: {}", refusal.reason)));
                } else {
                    version.enter(refusal.state, Some(refusal.reason.clone()));
                }
                self.changed();
                Err(refusal.reason)
            }
        }
    }
}

/// A version on its way to serve.
struct Candidate {
    inner: Arc<Inner>,
    model: Arc<Model>,
    version: Arc<Version>,
    settings: ModelSettings,
    progress: Arc<Progress>,
}

impl Candidate {
    fn load(self) -> Result<(), Refusal> {
        let (inner, version) = (&self.inner, &self.version);
        let mut times = LoadTimes::default();

        version.step(inner, ModelState::Verifying);
        let begun = Instant::now();
        let reader = Reader::of(&self)?;
        let read = reader.read(&self.progress);
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
        let effective = EffectiveSettings::resolve(&self.settings, &inner.options.defaults);
        if let Some(before) = version.serving()
            && before.digest == digest
            && before.settings == effective
            && before.lane_counts().healthy == before.lane_counts().wanted
        {
            tracing::info!(model = %self.model.name, version = version.number, "already serving these bytes");
            version.note(before.placement.degraded.clone());
            return Ok(());
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

        version.step(inner, ModelState::Loading);
        let begun = Instant::now();
        let mut session =
            inner.engine.build(bytes_of(&verified), &effective.session).map_err(Refusal::failed)?;
        times.build = begun.elapsed();

        version.step(inner, ModelState::Warming);
        let begun = Instant::now();
        let quarantined = |reason: String| Refusal {
            state: ModelState::Quarantined,
            reason: format!("digest {digest}: {reason}"),
        };
        // The first run of a session allocates, which is what warming is for; its answer is judged like the others.
        let (first, others) = golden.cases.split_at(golden.cases.len().min(1));
        probe(session.as_mut(), first).map_err(quarantined)?;
        version.step(inner, ModelState::Probing);
        probe(session.as_mut(), others).map_err(quarantined)?;
        times.probe = begun.elapsed();

        let example = golden.cases.into_iter().next().map(|case| case.inputs);
        self.serve(session, &verified, effective, times, reader, example);
        Ok(())
    }

    /// Puts the proven session to work, the first lane at once and the others as they are built.
    fn serve(
        &self,
        session: Box<dyn Session>,
        verified: &Arc<VerifiedModel>,
        settings: EffectiveSettings,
        times: LoadTimes,
        reader: Reader,
        example: Option<Vec<NamedTensor>>,
    ) {
        let (inner, model, version) = (&self.inner, &self.model, &self.version);
        let placement = session.placement().clone();
        let lanes_wanted = u32::try_from(settings.lanes).unwrap_or(1);
        let bytes = Arc::new(BytesSource::new(reader, verified, lanes_wanted.saturating_sub(1)));
        let rebuild = {
            let (inner, options) = (Arc::clone(inner), settings.session.clone());
            move || {
                let verified = bytes.get()?;
                inner.engine.build(bytes_of(&verified), &options).map_err(|error| error.to_string())
            }
        };
        let changed = {
            let (inner, version) = (Arc::downgrade(inner), Arc::downgrade(version));
            move |trouble| lanes_changed(&inner, &version, trouble)
        };
        let lanes = Arc::new(Lanes::new(
            model.name.clone(),
            lanes_wanted,
            settings.max_queue,
            inner.metrics.version(&model.name, version.number),
            Box::new(rebuild),
            Box::new(changed),
        ));
        let serving = Arc::new(Serving {
            model: model.name.clone(),
            version: version.number,
            contract: session.contract().clone(),
            placement: placement.clone(),
            digest: verified.digest.to_string(),
            verified: verified.verified,
            load: times,
            example,
            settings,
            lanes: Arc::clone(&lanes),
        });
        self.record(&serving);
        model.gate.set_limit(serving.settings.max_in_flight);
        lanes.start(0, session);
        version.serve(Some(Arc::clone(&serving)));
        let state = match placement.degraded {
            Some(_) => ModelState::Degraded,
            None => ModelState::Ready,
        };
        version.enter(state, placement.degraded.clone());
        model.elect();
        inner.changed();
        for index in 1..lanes_wanted {
            lanes.start_building(index);
        }
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

/// Lanes came or went: the report follows, and a version without any lane no longer serves.
fn lanes_changed(inner: &Weak<Inner>, version: &Weak<Version>, trouble: Option<String>) {
    let (Some(inner), Some(version)) = (inner.upgrade(), version.upgrade()) else {
        return;
    };
    if let Some(serving) = version.serving() {
        let counts = serving.lane_counts();
        match trouble {
            Some(reason) if counts.healthy == 0 && version.state().serves() => {
                version.note(Some(reason));
            }
            Some(reason) => version.note(Some(reason)),
            None if counts.healthy == counts.wanted => {
                version.note(serving.placement.degraded.clone());
            }
            None => {}
        }
    }
    inner.changed();
}

/// Where a version's bytes come from, the first time and again.
struct Reader {
    inner: Arc<Inner>,
    folder: PathBuf,
    options: ReadOptions,
}

impl Reader {
    fn of(candidate: &Candidate) -> Result<Self, Refusal> {
        let options = &candidate.inner.options;
        let settings = &candidate.settings;
        Ok(Reader {
            inner: Arc::clone(&candidate.inner),
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

    fn read(&self, progress: &Progress) -> Result<VerifiedModel, IntegrityError> {
        read_version(self.inner.repository.root(), &self.folder, &self.options, progress)
    }
}

/// Gives the bytes of a version to each lane that builds a session.
///
/// While the first lanes are built the bytes are kept; then they are let go, because a model would otherwise lie in
/// memory twice for ever. A lane that is replaced later reads them again, and takes them only if they are the same.
struct BytesSource {
    reader: Reader,
    digest: String,
    kept: Mutex<(u32, Option<Arc<VerifiedModel>>)>,
}

impl BytesSource {
    fn new(reader: Reader, verified: &Arc<VerifiedModel>, builds: u32) -> Self {
        let kept = (builds > 0).then(|| Arc::clone(verified));
        BytesSource {
            reader,
            digest: verified.digest.to_string(),
            kept: Mutex::new((builds, kept)),
        }
    }

    fn get(&self) -> Result<Arc<VerifiedModel>, String> {
        {
            let mut kept = self.kept.lock();
            if let (builds, Some(verified)) = &*kept {
                let (builds, verified) = (builds.saturating_sub(1), Arc::clone(verified));
                *kept = (builds, (builds > 0).then(|| Arc::clone(&verified)));
                return Ok(verified);
            }
        }
        let again = self.reader.read(&Progress::default()).map_err(|error| error.to_string())?;
        let found = again.digest.to_string();
        if found != self.digest {
            return Err(format!(
                "the files on disk are no longer those that were loaded (expected digest {}, found {found})",
                self.digest
            ));
        }
        Ok(Arc::new(again))
    }
}

fn bytes_of(verified: &VerifiedModel) -> ModelBytes<'_> {
    ModelBytes {
        model: &verified.model,
        external: &verified.external,
        unranked: &verified.graph.unranked,
    }
}

/// Judges a session by the golden requests: it must answer all of them as recorded.
fn probe(session: &mut dyn Session, cases: &[GoldenCase]) -> Result<(), String> {
    for case in cases {
        let at = |reason: String| format!("golden case {:?}: {reason}", case.name);
        let contract = session.contract();
        let inputs = contract
            .accept(case.inputs.clone(), usize::MAX)
            .map_err(|error| at(error.to_string()))?;
        let outputs = contract
            .select_outputs(case.outputs.iter().map(|output| output.name.as_str()))
            .map_err(|error| at(error.to_string()))?;
        let found = session.run(&inputs, &outputs).map_err(|error| at(error.to_string()))?;
        let named: Vec<NamedTensor> = case
            .outputs
            .iter()
            .zip(found.outputs)
            .map(|(expected, tensor)| NamedTensor { name: expected.name.clone(), tensor })
            .collect();
        case.check(&named).map_err(|mismatch| at(mismatch.to_string()))?;
    }
    Ok(())
}
