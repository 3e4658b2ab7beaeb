//! Loading and unloading: which versions are tried, in which order, and what becomes of the others.
//!
//! A load runs on a thread of its own ([`super::attempt`]); whoever asked for it waits.

use super::attempt::{Order, Tried};
use super::candidate::Refusal;
use super::{ControlError, Inner, Model, Models};
use crate::clip::clipped;
use crate::repository::ModelEntry;
use crate::settings::{ModelSettings, VersionPolicy};
use crate::version::Version;
use balm_probes::quarantine::QUARANTINED_MAX;
use balm_probes::watchdog::{load_limit_ms, loads_again, may_load};
use balm_probes::{ModelState, Quarantined, Reason, Rung, Sighting};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

/// Models that may be loaded at once at the start, with those that take long and make way for others.
const PARALLEL_LOADS_MAX: usize = 16;

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
        let parallel = self.0.options.parallel_loads.clamp(1, PARALLEL_LOADS_MAX);
        let start =
            Start { entries, next: AtomicUsize::new(0), loaders: AtomicUsize::new(parallel) };
        thread::scope(|scope| {
            for _ in 0..parallel {
                scope.spawn(|| self.load_some(&start, scope));
            }
        });
        Ok(())
    }

    /// Loads one model after the other, until there are none left.
    fn load_some<'scope>(&'scope self, start: &'scope Start, scope: &'scope Scope<'scope, '_>) {
        while let Some(entry) = start.next() {
            let model = self.0.entry(&entry.name, true);
            // A load that hangs holds up none of the others.
            let mut makes_way = || {
                let waits = start.next.load(Ordering::Relaxed) < start.entries.len();
                if waits && start.loaders.fetch_add(1, Ordering::Relaxed) < PARALLEL_LOADS_MAX {
                    scope.spawn(|| self.load_some(start, scope));
                }
            };
            let order = &mut Order { is_asked_for: false, makes_way: &mut makes_way };
            if let Err(error) = self.0.load_entry(&model, entry, order) {
                tracing::error!(model = %entry.name, %error, "model not loaded");
            }
        }
    }

    /// Reads the repository again for one model and loads what its version policy asks for. Blocks.
    ///
    /// Readiness is not judged by a model that was not there at the start, unless there was none at all.
    ///
    /// # Errors
    /// [`ControlError`]; what served before goes on serving.
    pub fn load(&self, name: &str) -> Result<(), ControlError> {
        self.load_for(name, true)
    }

    /// The same; with `is_asked_for` versions are tried as well that did harm before.
    pub(super) fn load_for(&self, name: &str, is_asked_for: bool) -> Result<(), ControlError> {
        let Some(entry) = self.0.repository.find(name) else {
            return Err(ControlError::UnknownModel(clipped(name)));
        };
        let model = self.0.entry(&entry.name, false);
        let result =
            self.0.load_entry(&model, &entry, &mut Order { is_asked_for, makes_way: &mut || {} });
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
        self.0.healing.memory_changed();
        self.0.changed();
        Ok(())
    }
}

/// The models that are loaded at the start.
struct Start {
    entries: Vec<ModelEntry>,
    next: AtomicUsize,
    loaders: AtomicUsize,
}

impl Start {
    fn next(&self) -> Option<&ModelEntry> {
        self.entries.get(self.next.fetch_add(1, Ordering::Relaxed))
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
    /// A version is not to be tried any more. The oldest is forgotten where there are too many.
    pub(super) fn did_harm(&self, one: Quarantined) {
        self.forget_harm(&one.model, &one.digest);
        let mut quarantined = self.quarantined.lock();
        quarantined.push(one);
        let surplus = quarantined.len().saturating_sub(QUARANTINED_MAX);
        quarantined.drain(..surplus);
    }

    /// A version has proved itself.
    pub(super) fn forget_harm(&self, model: &str, digest: &str) {
        self.quarantined.lock().retain(|one| !one.is(model, digest));
    }

    /// Why a version with these bytes is not to be tried, if it did harm before.
    pub(super) fn harm_of(&self, model: &str, digest: &str) -> Option<String> {
        let quarantined = self.quarantined.lock();
        quarantined.iter().find(|one| one.is(model, digest)).map(|one| one.reason.clone())
    }

    fn load_entry(
        self: &Arc<Self>,
        model: &Arc<Model>,
        entry: &ModelEntry,
        order: &mut Order<'_>,
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
                self.load_version(model, version, settings, order)
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

    /// Loads one version: once more where that does not end in its time, unless too many hang already.
    fn load_version(
        self: &Arc<Self>,
        model: &Arc<Model>,
        version: &Arc<Version>,
        settings: &ModelSettings,
        order: &mut Order<'_>,
    ) -> Result<(), String> {
        let subject = format!("load of model {:?} version {}", model.name, version.number);
        let result = self.load_in_time(model, version, settings, &subject, order);
        self.metrics.loaded(&model.name, version.number, result.is_ok());
        match result {
            Ok(()) => {
                self.healing.healed(&subject);
                Ok(())
            }
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

    fn load_in_time(
        self: &Arc<Self>,
        model: &Arc<Model>,
        version: &Arc<Version>,
        settings: &ModelSettings,
        subject: &str,
        order: &mut Order<'_>,
    ) -> Result<(), Refusal> {
        let configured_ms = milliseconds(self.options.load_limit);
        let limit_ms = load_limit_ms(version.load_ms(), configured_ms);
        let hanging = self.healing.hanging_loads(subject);
        if !may_load(hanging) {
            return Err(Refusal::failed(format!(
                "{} loads of it, and {} of all models, hang and cannot be ended: only another process helps",
                hanging.of_version, hanging.of_all
            )));
        }
        let mut tries = 0;
        loop {
            version.rediscover();
            tries += 1;
            let begun = Instant::now();
            let tried = self.try_version(model, version, settings, limit_ms, order);
            let life = match tried {
                Tried::Ended(Ok(())) => {
                    version.was_loaded_in(begun.elapsed());
                    return Ok(());
                }
                Tried::Ended(Err(refusal)) => {
                    self.healing.is_provider_lost(subject, &refusal.reason);
                    return Err(refusal);
                }
                Tried::Overdue { life } => life,
            };
            let reason = Reason::LoadOverdue;
            self.healing.see(Sighting { subject: subject.to_owned(), reason, after_ms: limit_ms });
            self.healing.did(subject, Rung::Cancel, reason);
            let how = if life.is_some() { " and does not end when it is told to" } else { "" };
            let refusal = Refusal::failed(format!(
                "its load takes longer than {limit_ms} ms{how}; tried {tries} times (repository.load_timeout_ms)"
            ));
            if let Some(life) = life {
                self.healing.abandon_load(subject, life);
            }
            if !loads_again(tries, self.healing.hanging_loads(subject)) {
                return Err(refusal);
            }
            tracing::warn!(model = %model.name, version = version.number, reason = refusal.reason, "loaded once more");
            self.refuse(version, refusal);
        }
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
