//! Admission: who may come in, decided in O(1) from atomics before the body is read.
//!
//! A [`Permit`] is a reservation that travels with the request into the job and is released by the lane when
//! `run` has returned. Concurrency is then what really runs, whatever clients do: a dropped connection frees
//! nothing that still computes. The stock `ConcurrencyLimit` frees its permit with the response future, and
//! under time-outs lets unbounded native work pile up behind it.
//!
//! What is bounded: waiting time, by class and client ([`Backlog`]), which is what keeps a server alive under any load; bytes of
//! bodies; and requests, as a last resort.

mod backlog;
mod breaker;
mod class;
mod clients;
mod estimate;
#[cfg(all(test, feature = "loom"))]
mod schedules;
mod shed;

pub use backlog::{Backlog, Patience};
pub use class::{Class, UnknownClass};
pub use shed::{RETRY_AFTER_MAX_S, Shed, ShedReason};

use crate::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use backlog::Entry;
use balm_probes::breaker::{BreakerResult, BreakerState, Pass};
use breaker::BreakerGate;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A counter with a ceiling.
#[derive(Debug)]
struct Slots {
    taken: AtomicU64,
    limit: AtomicU64,
}

impl Slots {
    fn new(limit: u64) -> Self {
        Slots { taken: AtomicU64::new(0), limit: AtomicU64::new(limit) }
    }

    /// Takes `amount` or nothing. Reserving by compare-and-swap, so that two callers cannot both take the last place.
    fn try_take(&self, amount: u64) -> bool {
        let limit = self.limit.load(Ordering::Relaxed);
        self.taken
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |taken| {
                taken.checked_add(amount).filter(|after| *after <= limit)
            })
            .is_ok()
    }

    fn give_back(&self, amount: u64) {
        let before = self.taken.fetch_sub(amount, Ordering::AcqRel);
        debug_assert!(before >= amount, "a permit was released twice");
    }

    fn taken(&self) -> u64 {
        self.taken.load(Ordering::Acquire)
    }
}

/// Bounds for the whole server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GateLimits {
    /// Requests between admission and the end of their run.
    pub in_flight: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
}

/// How much of the container's memory is used, in steps with a consequence each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum MemoryPressure {
    /// Enough is left.
    #[default]
    None,
    /// Half as many bytes of bodies as usual.
    High,
    /// Nothing that is sheddable or best-effort.
    Severe,
    /// Nobody.
    Critical,
}

impl MemoryPressure {
    /// Every step, the least first.
    pub const ALL: [MemoryPressure; 4] = [
        MemoryPressure::None,
        MemoryPressure::High,
        MemoryPressure::Severe,
        MemoryPressure::Critical,
    ];

    /// The step for `used` of `limit` bytes.
    pub fn of(used: u64, limit: u64) -> Self {
        let percent = u128::from(used) * 100 / u128::from(limit.max(1));
        match percent {
            0..85 => MemoryPressure::None,
            85..92 => MemoryPressure::High,
            92..95 => MemoryPressure::Severe,
            _ => MemoryPressure::Critical,
        }
    }

    fn refuses(self, class: Class) -> bool {
        match self {
            MemoryPressure::None | MemoryPressure::High => false,
            MemoryPressure::Severe => class >= Class::Sheddable,
            MemoryPressure::Critical => true,
        }
    }
}

/// A request at the door.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// How much it matters.
    pub class: Class,
    /// A hash of the key by which its client is known.
    pub client: u64,
    /// What its body is going to take. More can be reserved through [`Permit::reserve`] when that is not known beforehand.
    pub bytes: u64,
    /// When its answer is wanted.
    pub deadline: Instant,
    /// The time.
    pub now: Instant,
}

/// The door of the server: bounds what is in flight, in total and per model.
#[derive(Debug)]
pub struct Gate {
    requests: Slots,
    bytes: Slots,
    bytes_limit: u64,
    pressure: AtomicU8,
    draining: AtomicBool,
}

/// The door of one model.
#[derive(Debug)]
pub struct ModelGate {
    requests: Slots,
    breaker: BreakerGate,
}

impl ModelGate {
    /// A door that lets `in_flight` requests be inside at once.
    pub fn new(in_flight: u64) -> Self {
        ModelGate { requests: Slots::new(in_flight), breaker: BreakerGate::new() }
    }

    /// Changes the bound. Who is inside stays, also when there are more than the new bound.
    pub fn set_limit(&self, in_flight: u64) {
        self.requests.limit.store(in_flight, Ordering::Relaxed);
    }

    /// Requests of this model that are inside.
    pub fn in_flight(&self) -> u64 {
        self.requests.taken()
    }

    /// What the breaker does.
    pub fn breaker(&self) -> BreakerState {
        self.breaker.state()
    }

    /// Whether the breaker wants a canary now; then [`ModelGate::canary`] is waited for. To be asked with each tick.
    pub(crate) fn wants_canary(&self, now: Instant) -> bool {
        self.breaker.wants_canary(now)
    }

    /// The canary that the breaker wanted came back.
    pub(crate) fn canary(&self, result: BreakerResult, now: Instant) {
        self.breaker.canary(result, now);
    }
}

impl Gate {
    /// A door with these bounds.
    pub fn new(limits: GateLimits) -> Self {
        Gate {
            requests: Slots::new(limits.in_flight),
            bytes: Slots::new(limits.bytes),
            bytes_limit: limits.bytes,
            pressure: AtomicU8::new(0),
            draining: AtomicBool::new(false),
        }
    }

    /// Lets a request in to wait for the lanes behind `backlog`, or says why not.
    ///
    /// # Errors
    /// The first bound that is reached, and when to come again.
    pub fn admit(
        self: &Arc<Self>,
        model: &Arc<ModelGate>,
        backlog: &Arc<Backlog>,
        ask: &Ask,
    ) -> Result<Permit, Shed> {
        let pass = model
            .breaker
            .admit(ask.now)
            .map_err(|wait| Shed::until(ShedReason::BreakerOpen, wait))?;
        match self.enter(model, backlog, ask) {
            Ok(mut permit) => {
                permit.pass = Some(pass);
                Ok(permit)
            }
            Err(reason) => {
                model.breaker.ended(pass, BreakerResult::Neither);
                Err(Shed::until(reason, backlog.wait(ask.class)))
            }
        }
    }

    /// The same for a canary, which the breaker does not hold up: it is what the breaker judges by.
    ///
    /// # Errors
    /// The first bound that is reached, and when to come again.
    pub(crate) fn admit_canary(
        self: &Arc<Self>,
        model: &Arc<ModelGate>,
        backlog: &Arc<Backlog>,
        ask: &Ask,
    ) -> Result<Permit, Shed> {
        let mut permit = self
            .enter(model, backlog, ask)
            .map_err(|reason| Shed::until(reason, backlog.wait(ask.class)))?;
        permit.is_canary = true;
        Ok(permit)
    }

    fn enter(
        self: &Arc<Self>,
        model: &Arc<ModelGate>,
        backlog: &Arc<Backlog>,
        ask: &Ask,
    ) -> Result<Permit, ShedReason> {
        if self.draining.load(Ordering::Acquire) {
            return Err(ShedReason::Draining);
        }
        if self.pressure().refuses(ask.class) {
            return Err(ShedReason::Memory);
        }
        // Time first: it is the bound that is meant to be reached.
        let remaining = ask.deadline.saturating_duration_since(ask.now);
        let entry = backlog.enter(ask.class, ask.client, ask.bytes, remaining, ask.now)?;
        // From here on the permit exists, and its drop gives back just what was taken.
        let mut permit = Permit {
            gate: Arc::clone(self),
            model: Arc::clone(model),
            pass: None,
            is_canary: false,
            backlog: Arc::clone(backlog),
            entry,
            bytes: 0,
            holds_model_slot: false,
            holds_server_slot: false,
        };
        if !model.requests.try_take(1) {
            return Err(ShedReason::ModelInFlight);
        }
        permit.holds_model_slot = true;
        if !self.requests.try_take(1) {
            return Err(ShedReason::ServerInFlight);
        }
        permit.holds_server_slot = true;
        if !permit.take_bytes(ask.bytes) {
            return Err(ShedReason::Bytes);
        }
        Ok(permit)
    }

    /// So much of the memory is used.
    pub fn press(&self, pressure: MemoryPressure) {
        let part = if pressure == MemoryPressure::None { 1 } else { 2 };
        self.bytes.limit.store(self.bytes_limit / part, Ordering::Relaxed);
        self.pressure.store(pressure as u8, Ordering::Relaxed);
    }

    /// How much of the memory is used.
    pub fn pressure(&self) -> MemoryPressure {
        let step = usize::from(self.pressure.load(Ordering::Relaxed));
        MemoryPressure::ALL.get(step).copied().unwrap_or_default()
    }

    /// From now on nobody is let in; who is inside may finish.
    pub fn close(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Requests that are inside.
    pub fn in_flight(&self) -> u64 {
        self.requests.taken()
    }

    /// Bytes of bodies that are inside.
    pub fn bytes_in_flight(&self) -> u64 {
        self.bytes.taken()
    }
}

/// A place inside. Dropping it gives the place back; nothing else does.
#[derive(Debug)]
pub struct Permit {
    gate: Arc<Gate>,
    model: Arc<ModelGate>,
    /// Of the breaker, until that is told how the request ended.
    pass: Option<Pass>,
    is_canary: bool,
    backlog: Arc<Backlog>,
    entry: Entry,
    bytes: u64,
    holds_model_slot: bool,
    holds_server_slot: bool,
}

impl Permit {
    /// Reserves `more` bytes for a body that turned out larger than announced, or was not announced.
    ///
    /// # Errors
    /// [`ShedReason::Bytes`]; what was reserved before stays reserved.
    pub fn reserve(&mut self, more: u64) -> Result<(), Shed> {
        if self.take_bytes(more) { Ok(()) } else { Err(Shed::new(ShedReason::Bytes)) }
    }

    fn take_bytes(&mut self, more: u64) -> bool {
        let taken = self.gate.bytes.try_take(more);
        self.bytes += if taken { more } else { 0 };
        taken
    }

    /// Its class.
    pub fn class(&self) -> Class {
        self.entry.class
    }

    /// The body has said more than the head did: its class, and what it is going to take, where that is known.
    pub(crate) fn change(&mut self, class: Class, price: Option<Duration>) {
        let price_ns = price.map_or(self.entry.price_ns(), |price| {
            u64::try_from(price.as_nanos()).unwrap_or(u64::MAX)
        });
        self.backlog.change(&mut self.entry, class, price_ns);
    }

    /// Whether the deadline can be kept, now that the body is read.
    ///
    /// # Errors
    /// [`ShedReason::Infeasible`].
    pub(crate) fn feasible(&self, deadline: Instant, now: Instant) -> Result<(), Shed> {
        let remaining = deadline.saturating_duration_since(now);
        self.backlog
            .still_feasible(&self.entry, remaining, now)
            .map_err(|reason| Shed::until(reason, self.backlog.wait(self.entry.class)))
    }

    /// The request took `price` of a run of `run`: the next one of its length is judged by it.
    pub(crate) fn ran(&self, price: Duration, run: Duration, now: Instant) {
        self.backlog.learn(&self.entry, price, run, now);
    }

    /// Whether it is one of the watchdog's own.
    pub(crate) fn is_canary(&self) -> bool {
        self.is_canary
    }

    /// Tells the breaker of the model how the request ended.
    pub(crate) fn ended(&mut self, result: BreakerResult) {
        if let Some(pass) = self.pass.take() {
            self.model.breaker.ended(pass, result);
        }
    }

    /// Bytes that this permit holds.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.ended(BreakerResult::Neither);
        self.gate.bytes.give_back(self.bytes);
        if self.holds_server_slot {
            self.gate.requests.give_back(1);
        }
        if self.holds_model_slot {
            self.model.requests.give_back(1);
        }
        self.backlog.leave(&self.entry);
    }
}

#[cfg(all(test, not(feature = "loom")))]
mod tests;
