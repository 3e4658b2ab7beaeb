//! The states of a model version, and which may follow which.
//!
//! `discovered → verifying → loading → warming → probing → ready ⇄ degraded`, and out of every one of them
//! to `failed`, `quarantined` or `unloading`. A failed, quarantined or unloaded version begins anew at
//! `discovered`: nothing is served that was not verified in the same run through the states.

use std::fmt;

use serde::{Deserialize, Serialize};

/// State of one version of one model. The numbers are for an `AtomicU8` and are not stored anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum ModelState {
    /// Found in the repository; nothing has been read yet.
    Discovered = 0,
    /// Its bytes are being read and compared to the manifest.
    Verifying = 1,
    /// The engine builds sessions from the verified bytes.
    Loading = 2,
    /// The first golden request, whose run allocates; its time counts for nothing.
    Warming = 3,
    /// Golden requests are compared to their known answers.
    Probing = 4,
    /// Serves as configured.
    Ready = 5,
    /// Serves, yet with less than was asked for: another provider, or fewer lanes.
    Degraded = 6,
    /// Judged harmful by its digest; stays out until a person or other bytes say otherwise.
    Quarantined = 7,
    /// Could not be brought to serve; the reason says why.
    Failed = 8,
    /// Takes no new work; what runs is finishing.
    Unloading = 9,
    /// Was let go on request; its memory is free.
    Unloaded = 10,
}

/// State in the words of the Open Inference Protocol's repository index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum IndexState {
    /// Known by name, nothing else.
    Unknown,
    /// A request would be answered.
    Ready,
    /// A request would be refused, and nothing is under way to change that.
    Unavailable,
    /// On the way to serving.
    Loading,
    /// On the way out.
    Unloading,
}

// ===== impl ModelState =====

impl ModelState {
    /// Every state, in the order of a version's life; the index is the number of [`ModelState::as_u8`].
    pub const ALL: [ModelState; 11] = [
        ModelState::Discovered,
        ModelState::Verifying,
        ModelState::Loading,
        ModelState::Warming,
        ModelState::Probing,
        ModelState::Ready,
        ModelState::Degraded,
        ModelState::Quarantined,
        ModelState::Failed,
        ModelState::Unloading,
        ModelState::Unloaded,
    ];

    /// Name in lower case, as it stands in `/status`, log fields and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            ModelState::Discovered => "discovered",
            ModelState::Verifying => "verifying",
            ModelState::Loading => "loading",
            ModelState::Warming => "warming",
            ModelState::Probing => "probing",
            ModelState::Ready => "ready",
            ModelState::Degraded => "degraded",
            ModelState::Quarantined => "quarantined",
            ModelState::Failed => "failed",
            ModelState::Unloading => "unloading",
            ModelState::Unloaded => "unloaded",
        }
    }

    /// Number for an `AtomicU8`.
    pub const fn as_u8(self) -> u8 {
        self as u8
    }

    /// The inverse of [`ModelState::as_u8`]; `None` for a number that no state has.
    pub fn from_u8(number: u8) -> Option<ModelState> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Whether a version in this state takes requests, provided that a lane is healthy.
    pub const fn serves(self) -> bool {
        matches!(self, ModelState::Ready | ModelState::Degraded)
    }

    /// Whether the state is a step that leads on by itself. The others stay until something happens.
    pub const fn in_transit(self) -> bool {
        match self {
            ModelState::Discovered
            | ModelState::Verifying
            | ModelState::Loading
            | ModelState::Warming
            | ModelState::Probing
            | ModelState::Unloading => true,
            ModelState::Ready
            | ModelState::Degraded
            | ModelState::Quarantined
            | ModelState::Failed
            | ModelState::Unloaded => false,
        }
    }

    /// Whether `next` may follow this state. Staying is no transition, so a state never follows itself.
    pub const fn may_become(self, next: ModelState) -> bool {
        use ModelState as S;
        match self {
            // A digest that is known to be bad is refused before or after it was verified again.
            S::Discovered => {
                matches!(next, S::Verifying | S::Quarantined | S::Failed | S::Unloaded)
            }
            S::Verifying => {
                matches!(next, S::Loading | S::Quarantined | S::Failed | S::Unloading)
            }
            S::Loading => {
                matches!(next, S::Warming | S::Quarantined | S::Failed | S::Unloading)
            }
            S::Warming => {
                matches!(next, S::Probing | S::Quarantined | S::Failed | S::Unloading)
            }
            S::Probing => {
                matches!(next, S::Ready | S::Degraded | S::Quarantined | S::Failed | S::Unloading)
            }
            S::Ready => {
                matches!(next, S::Degraded | S::Quarantined | S::Failed | S::Unloading)
            }
            S::Degraded => {
                matches!(next, S::Ready | S::Quarantined | S::Failed | S::Unloading)
            }
            // Both may still hold sessions, whose last runs are waited for in `unloading`.
            S::Quarantined | S::Failed => matches!(next, S::Discovered | S::Unloading),
            S::Unloading => matches!(next, S::Unloaded),
            S::Unloaded => matches!(next, S::Discovered),
        }
    }

    /// The state as the repository index of the Open Inference Protocol tells it.
    pub const fn index_state(self) -> IndexState {
        match self {
            ModelState::Discovered => IndexState::Unknown,
            ModelState::Verifying
            | ModelState::Loading
            | ModelState::Warming
            | ModelState::Probing => IndexState::Loading,
            ModelState::Ready | ModelState::Degraded => IndexState::Ready,
            ModelState::Quarantined | ModelState::Failed | ModelState::Unloaded => {
                IndexState::Unavailable
            }
            ModelState::Unloading => IndexState::Unloading,
        }
    }
}

impl fmt::Display for ModelState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

// ===== impl IndexState =====

impl IndexState {
    /// The protocol's own word, in upper case.
    pub const fn as_str(self) -> &'static str {
        match self {
            IndexState::Unknown => "UNKNOWN",
            IndexState::Ready => "READY",
            IndexState::Unavailable => "UNAVAILABLE",
            IndexState::Loading => "LOADING",
            IndexState::Unloading => "UNLOADING",
        }
    }
}

impl fmt::Display for IndexState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_round_trip() {
        for (index, state) in ModelState::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(state.as_u8()), index);
            assert_eq!(ModelState::from_u8(state.as_u8()), Some(state));
            let json = serde_json::to_string(&state).unwrap();
            assert_eq!(json, format!("\"{}\"", state.as_str()));
            assert_eq!(serde_json::from_str::<ModelState>(&json).unwrap(), state);
            let index_json = serde_json::to_string(&state.index_state()).unwrap();
            assert_eq!(index_json, format!("\"{}\"", state.index_state().as_str()));
            assert_eq!(index_json, format!("\"{}\"", state.index_state()));
        }
        for number in 11..=u8::MAX {
            assert_eq!(ModelState::from_u8(number), None);
        }
    }

    /// The whole table, one row per state: what may follow.
    #[test]
    fn the_table_of_transitions() {
        use ModelState::*;
        let table: [(ModelState, &[ModelState]); 11] = [
            (Discovered, &[Verifying, Quarantined, Failed, Unloaded]),
            (Verifying, &[Loading, Quarantined, Failed, Unloading]),
            (Loading, &[Warming, Quarantined, Failed, Unloading]),
            (Warming, &[Probing, Quarantined, Failed, Unloading]),
            (Probing, &[Ready, Degraded, Quarantined, Failed, Unloading]),
            (Ready, &[Degraded, Quarantined, Failed, Unloading]),
            (Degraded, &[Ready, Quarantined, Failed, Unloading]),
            (Quarantined, &[Discovered, Unloading]),
            (Failed, &[Discovered, Unloading]),
            (Unloading, &[Unloaded]),
            (Unloaded, &[Discovered]),
        ];
        for (state, followers) in table {
            for next in ModelState::ALL {
                assert_eq!(state.may_become(next), followers.contains(&next), "{state} → {next}");
            }
        }
    }

    /// No way leads to serving that leaves out the verification of the bytes.
    #[test]
    fn nothing_serves_unverified() {
        let mut reached = vec![ModelState::Discovered, ModelState::Unloaded];
        let mut at = 0;
        while at < reached.len() {
            for next in ModelState::ALL {
                if next != ModelState::Verifying
                    && reached[at].may_become(next)
                    && !reached.contains(&next)
                {
                    reached.push(next);
                }
            }
            at += 1;
        }
        assert!(reached.iter().all(|state| !state.serves()), "{reached:?}");
    }

    #[test]
    fn only_serving_states_are_ready_in_the_index() {
        for state in ModelState::ALL {
            assert_eq!(state.serves(), state.index_state() == IndexState::Ready, "{state}");
            assert!(!(state.serves() && state.in_transit()), "{state}");
        }
    }
}
