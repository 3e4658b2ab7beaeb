//! Loading and unloading: which versions are tried, in which order, and what becomes of the others.
//!
//! A load runs on a thread of its own; whoever asked for it waits, and says every ten seconds how far it is.

use super::candidate::{Candidate, Refusal};
use super::{ControlError, Inner, Model, Models};
use crate::clip::clipped;
use crate::integrity::Progress;
use crate::repository::ModelEntry;
use crate::settings::{ModelSettings, VersionPolicy};
use crate::version::Version;
use balm_probes::ModelState;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// A load that takes longer says so this often.
const STILL_LOADING_EVERY: Duration = Duration::from_secs(10);

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
            return Err(ControlError::UnknownModel(clipped(name)));
        };
        let model = self.0.entry(&entry.name, false);
        let result = self.0.load_entry(&model, &entry);
        if model.serving(None).is_ok() {
            model.withdrawn.store(false, Ordering::Release);
            if self.declares_nothing() {
                model.declared.store(true, Ordering::Release);
            }
        }
        self.0.changed();
        result
    }

    /// Whether the server was started without any model. Then the first one that is loaded is what it is there for.
    fn declares_nothing(&self) -> bool {
        self.all().iter().all(|model| !model.declared.load(Ordering::Acquire))
    }

    /// Lets a model go: what waits is still answered, then its sessions end. Blocks while a load of it is under way.
    ///
    /// Readiness is no longer judged by it: letting one model go is a choice, not a failure. A server without any
    /// declared model is not ready.
    ///
    /// # Errors
    /// [`ControlError::UnknownModel`].
    pub fn unload(&self, name: &str) -> Result<(), ControlError> {
        let model = self.model(name).map_err(|_| ControlError::UnknownModel(clipped(name)))?;
        let _control = model.control.lock();
        model.withdrawn.store(true, Ordering::Release);
        for version in model.versions.load().iter() {
            version.unload(&self.0);
        }
        model.elect();
        self.0.changed();
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
                    .map_or_else(|| Version::new(&self.name, number), Arc::clone)
            })
            .collect();
        self.versions.store(Arc::new(next));
        inner.changed();
    }
}

impl Version {
    fn unload(&self, inner: &Inner) {
        let state = self.state();
        if state == ModelState::Unloaded {
            return;
        }
        if state != ModelState::Discovered {
            self.enter(ModelState::Unloading, None);
            inner.changed();
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
        // A version that model.toml asks for and that is absent is a failed version, for all to see.
        let asked =
            entry.settings.as_ref().map(|settings| settings.versions.candidates(&entry.versions));
        let numbers: BTreeSet<u64> =
            entry.versions.iter().copied().chain(asked.unwrap_or_default()).collect();
        model.set_versions(self, &numbers.into_iter().collect::<Vec<_>>());
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
                continue;
            };
            let loaded = if entry.versions.contains(&number) {
                self.load_version(model, version, settings)
            } else {
                let reason = "model.toml asks for it, the repository has no such folder".to_owned();
                self.refuse(version, Refusal::failed(&reason));
                Err(reason)
            };
            if let Err(reason) = &loaded {
                reasons.push(format!("version {number}: {reason}"));
            }
            // What served before goes on serving when its successor is refused.
            if loaded.is_ok() || version.serving().is_some() {
                kept.insert(number);
                if settings.versions == VersionPolicy::Latest {
                    break;
                }
            }
        }
        // Only now, when a successor serves, the versions that the policy no longer asks for go.
        for version in versions.iter().filter(|version| !kept.contains(&version.number)) {
            let superseded = version.serving().is_some() && !kept.is_empty();
            if superseded || version.state() == ModelState::Discovered {
                version.unload(self);
                version.note(Some("the model's version policy does not ask for it".to_owned()));
            }
        }
        model.elect();
        self.changed();
        if reasons.is_empty() {
            return Ok(());
        }
        let serves: Vec<String> =
            model.all_serving().iter().map(|serving| serving.version.to_string()).collect();
        if !serves.is_empty() {
            reasons.push(format!("version {} serves", serves.join(", ")));
        }
        Err(self.refused(model, reasons.join("; ")))
    }

    /// A version does not come to serve. One that serves already goes on, with a note; one that answers nobody is let go.
    fn refuse(&self, version: &Version, refusal: Refusal) {
        if version.serving().is_some_and(|serving| serving.is_trusted()) {
            version.note(Some(format!("a reload was refused: {}", refusal.reason)));
        } else {
            version.serve(None);
            version.rediscover();
            version.enter(refusal.state, Some(refusal.reason));
        }
        self.changed();
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
                let (result, more) = match candidate.load() {
                    Ok(more) => (Ok(()), more),
                    Err(refusal) => (Err(refusal), None),
                };
                // Whoever waits goes on as soon as one lane serves.
                let _ = sender.send(result);
                if let Some(more) = more {
                    more.build();
                }
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
                let reason = refusal.reason.clone();
                self.refuse(version, refusal);
                Err(reason)
            }
        }
    }
}
