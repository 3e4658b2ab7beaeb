//! The route of a version: discovered → verifying → loading → warming → probing → ready.

use super::{Inner, Model};
use crate::effective::EffectiveSettings;
use crate::engine::{ModelBytes, Session, SessionOptions};
use crate::golden::{Golden, GoldenCase};
use crate::integrity::{
    Digest, GOLDEN_FILE, IntegrityError, Progress, ReadOptions, VerifiedModel, read_version,
};
use crate::lane::Lanes;
use crate::settings::ModelSettings;
use crate::tensor::NamedTensor;
use crate::version::{LoadTimes, Serving, Version};
use balm_probes::ModelState;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
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
}

/// A version on its way to serve.
pub(super) struct Candidate {
    pub(super) inner: Arc<Inner>,
    pub(super) model: Arc<Model>,
    pub(super) version: Arc<Version>,
    pub(super) settings: ModelSettings,
    pub(super) progress: Arc<Progress>,
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
        Ok(Some(self.serve(session, &verified, effective, times, reader, example)))
    }

    /// Puts the proven session to work as the first lane. The others are still to be built.
    fn serve(
        &self,
        session: Box<dyn Session>,
        verified: &Arc<VerifiedModel>,
        settings: EffectiveSettings,
        times: LoadTimes,
        reader: Reader,
        example: Option<Vec<NamedTensor>>,
    ) -> MoreLanes {
        let (inner, model, version) = (&self.inner, &self.model, &self.version);
        let placement = session.placement().clone();
        let lanes_wanted = u32::try_from(settings.lanes).unwrap_or(1);
        let rebuild = {
            let (inner, options) = (Arc::clone(inner), settings.session.clone());
            let digest = verified.digest;
            move || {
                let again = reader.read_again(digest)?;
                inner.engine.build(bytes_of(&again), &options).map_err(|error| error.to_string())
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
        MoreLanes {
            inner: Arc::clone(inner),
            lanes,
            verified: Arc::clone(verified),
            options: serving.settings.session.clone(),
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

    /// Reads again for a lane that is replaced, and takes the bytes only if they are the same. (Keeping them would hold
    /// every model in memory twice, for ever.)
    fn read_again(&self, digest: Digest) -> Result<VerifiedModel, String> {
        let again = self.read(&Progress::default()).map_err(|error| error.to_string())?;
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
    options: SessionOptions,
}

impl MoreLanes {
    /// Builds them one after the other on this thread: what the building of one leaves in the allocator serves the next,
    /// where threads of their own would keep it each. Then the bytes of the model are let go.
    pub(super) fn build(self) {
        for index in 1..self.lanes.wanted {
            if self.lanes.queue.is_closed() {
                return;
            }
            match self.inner.engine.build(bytes_of(&self.verified), &self.options) {
                Ok(session) => self.lanes.join(index, session),
                Err(error) => self.lanes.lost(format!("lane {index} could not be built: {error}")),
            }
        }
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
