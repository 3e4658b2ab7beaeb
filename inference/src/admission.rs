//! Admission: who may come in, decided in O(1) from atomics before the body is read.
//!
//! A [`Permit`] is a reservation that travels with the request into the job and is released by the lane when
//! `run` has returned. Concurrency is then what really runs, whatever clients do: a dropped connection frees
//! nothing that still computes. The stock `ConcurrencyLimit` frees its permit with the response future, and
//! under time-outs lets unbounded native work pile up behind it.
//!
//! This first version bounds requests and bytes. The next one bounds waiting *time*; [`Gate::admit`] is the seam.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Why a request was turned away. The names are label values and the `x-shed-reason` header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ShedReason {
    /// This model has as many requests in flight as it may.
    ModelInFlight,
    /// The server has as many requests in flight as it may.
    ServerInFlight,
    /// The bodies in flight would take more memory than they may.
    Bytes,
    /// The model's queue is full.
    QueueFull,
    /// The server is about to end.
    Draining,
}

impl ShedReason {
    /// Every reason, for metrics that are there before the first event.
    pub const ALL: [ShedReason; 5] = [
        ShedReason::ModelInFlight,
        ShedReason::ServerInFlight,
        ShedReason::Bytes,
        ShedReason::QueueFull,
        ShedReason::Draining,
    ];

    /// Label value.
    pub const fn as_str(self) -> &'static str {
        match self {
            ShedReason::ModelInFlight => "model_in_flight",
            ShedReason::ServerInFlight => "server_in_flight",
            ShedReason::Bytes => "bytes_in_flight",
            ShedReason::QueueFull => "queue_full",
            ShedReason::Draining => "draining",
        }
    }
}

impl fmt::Display for ShedReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ShedReason::ModelInFlight => {
                "the model has as many requests in flight as it may (limits.max_in_flight)"
            }
            ShedReason::ServerInFlight => {
                "the server has as many requests in flight as it may (admission.max_in_flight)"
            }
            ShedReason::Bytes => {
                "the bodies in flight take as much memory as they may (admission.max_bytes_in_flight)"
            }
            ShedReason::QueueFull => "the model's queue is full",
            ShedReason::Draining => "the server is draining",
        })
    }
}

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

/// The door of the server: bounds what is in flight, in total and per model.
#[derive(Debug)]
pub struct Gate {
    requests: Slots,
    bytes: Slots,
    draining: AtomicBool,
}

/// The door of one model.
#[derive(Debug)]
pub struct ModelGate {
    requests: Slots,
}

impl ModelGate {
    /// A door that lets `in_flight` requests be inside at once.
    pub fn new(in_flight: u64) -> Self {
        ModelGate { requests: Slots::new(in_flight) }
    }

    /// Changes the bound. Who is inside stays, also when there are more than the new bound.
    pub fn set_limit(&self, in_flight: u64) {
        self.requests.limit.store(in_flight, Ordering::Relaxed);
    }

    /// Requests of this model that are inside.
    pub fn in_flight(&self) -> u64 {
        self.requests.taken()
    }
}

impl Gate {
    /// A door with these bounds.
    pub fn new(limits: GateLimits) -> Self {
        Gate {
            requests: Slots::new(limits.in_flight),
            bytes: Slots::new(limits.bytes),
            draining: AtomicBool::new(false),
        }
    }

    /// Lets a request in, or says why not. `bytes` is what its body is going to take; more can be reserved
    /// through [`Permit::reserve`] when that is not known beforehand.
    ///
    /// # Errors
    /// The first bound that is reached.
    pub fn admit(
        self: &Arc<Self>,
        model: &Arc<ModelGate>,
        bytes: u64,
    ) -> Result<Permit, ShedReason> {
        if self.draining.load(Ordering::Acquire) {
            return Err(ShedReason::Draining);
        }
        if !model.requests.try_take(1) {
            return Err(ShedReason::ModelInFlight);
        }
        // From here on the permit exists, and its drop gives back just what was taken.
        let mut permit = Permit {
            gate: Arc::clone(self),
            model: Arc::clone(model),
            bytes: 0,
            holds_server_slot: false,
        };
        if !self.requests.try_take(1) {
            return Err(ShedReason::ServerInFlight);
        }
        permit.holds_server_slot = true;
        permit.reserve(bytes)?;
        Ok(permit)
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
    bytes: u64,
    holds_server_slot: bool,
}

impl Permit {
    /// Reserves `more` bytes for a body that turned out larger than announced, or was not announced.
    ///
    /// # Errors
    /// [`ShedReason::Bytes`]; what was reserved before stays reserved.
    pub fn reserve(&mut self, more: u64) -> Result<(), ShedReason> {
        if !self.gate.bytes.try_take(more) {
            return Err(ShedReason::Bytes);
        }
        self.bytes += more;
        Ok(())
    }

    /// Bytes that this permit holds.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.gate.bytes.give_back(self.bytes);
        if self.holds_server_slot {
            self.gate.requests.give_back(1);
        }
        self.model.requests.give_back(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn gate(in_flight: u64, bytes: u64) -> Arc<Gate> {
        Arc::new(Gate::new(GateLimits { in_flight, bytes }))
    }

    #[test]
    fn each_bound_has_its_reason() {
        let server = gate(2, 100);
        let model = Arc::new(ModelGate::new(1));
        let other = Arc::new(ModelGate::new(10));
        let first = server.admit(&model, 60).unwrap();
        assert_eq!(server.admit(&model, 1).unwrap_err(), ShedReason::ModelInFlight);
        assert_eq!(server.admit(&other, 41).unwrap_err(), ShedReason::Bytes);
        let second = server.admit(&other, 40).unwrap();
        assert_eq!(server.admit(&other, 0).unwrap_err(), ShedReason::ServerInFlight);
        assert_eq!((server.in_flight(), server.bytes_in_flight()), (2, 100));
        drop(first);
        drop(second);
        server.close();
        assert_eq!(server.admit(&other, 0).unwrap_err(), ShedReason::Draining);
        assert_eq!((server.in_flight(), server.bytes_in_flight()), (0, 0));
        assert_eq!((model.in_flight(), other.in_flight()), (0, 0));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Admit { model: usize, bytes: u64 },
        Reserve { nth: usize, bytes: u64 },
        Drop { nth: usize },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..3usize, 0..60u64).prop_map(|(model, bytes)| Step::Admit { model, bytes }),
            (0..8usize, 0..60u64).prop_map(|(nth, bytes)| Step::Reserve { nth, bytes }),
            (0..8usize).prop_map(|nth| Step::Drop { nth }),
        ]
    }

    proptest! {
        /// Whatever is admitted, refused, grown or dropped: the counters are the sum of the permits that live.
        #[test]
        fn permits_are_conserved(steps in proptest::collection::vec(step(), 0..200)) {
            let server = gate(5, 200);
            let models: Vec<_> = (0..3).map(|_| Arc::new(ModelGate::new(3))).collect();
            let mut held: Vec<(usize, Permit)> = Vec::new();
            for step in steps {
                match step {
                    Step::Admit { model, bytes } => {
                        if let Ok(permit) = server.admit(&models[model], bytes) {
                            held.push((model, permit));
                        }
                    }
                    Step::Reserve { nth, bytes } => {
                        if let Some((_, permit)) = held.get_mut(nth) {
                            let _ = permit.reserve(bytes);
                        }
                    }
                    Step::Drop { nth } if nth < held.len() => drop(held.swap_remove(nth)),
                    Step::Drop { .. } => {}
                }
                prop_assert_eq!(server.in_flight(), held.len() as u64);
                prop_assert!(held.len() <= 5);
                let bytes: u64 = held.iter().map(|(_, permit)| permit.bytes()).sum();
                prop_assert_eq!(server.bytes_in_flight(), bytes);
                prop_assert!(bytes <= 200);
                for (index, model) in models.iter().enumerate() {
                    let count = held.iter().filter(|(of, _)| *of == index).count();
                    prop_assert_eq!(model.in_flight(), count as u64);
                    prop_assert!(count <= 3);
                }
            }
        }
    }

    #[test]
    fn threads_never_exceed_the_bound() {
        let server = gate(4, 1_000_000);
        let model = Arc::new(ModelGate::new(u64::MAX));
        let inside = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        if let Ok(permit) = server.admit(&model, 10) {
                            assert!(inside.fetch_add(1, Ordering::SeqCst) < 4);
                            inside.fetch_sub(1, Ordering::SeqCst);
                            drop(permit);
                        }
                    }
                });
            }
        });
        assert_eq!((server.in_flight(), server.bytes_in_flight(), model.in_flight()), (0, 0, 0));
    }
}
