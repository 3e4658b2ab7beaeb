//! How the lanes of a version stand, and what state that makes of the version.

use balm_probes::ModelState;

/// How the lanes of a version stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Condition {
    /// As many as configured.
    pub(crate) wanted: u32,
    /// As many as would take a job now. A busy lane is healthy.
    pub(crate) healthy: u32,
    /// As many as are being built, for the first time or in place of a dead one.
    pub(crate) coming: u32,
    /// Why a lane does not run where it was asked to.
    pub(crate) degraded: Option<String>,
    /// The latest trouble with a lane, until all are healthy again.
    pub(crate) trouble: Option<String>,
    /// Why nothing that they answer can be vouched for. They answer nobody, for good.
    pub(crate) suspect: Option<String>,
}

impl Condition {
    /// The state of a version that serves by these lanes, and why. Lanes that are coming for the first time are no lack.
    pub(crate) fn verdict(&self) -> (ModelState, Option<String>) {
        // Its lanes end, and that is no failure of theirs.
        if self.suspect.is_some() {
            return (ModelState::Degraded, self.suspect.clone());
        }
        if self.is_hopeless() {
            return (ModelState::Failed, self.trouble.clone());
        }
        if self.degraded.is_some() {
            return (ModelState::Degraded, self.degraded.clone());
        }
        if self.healthy + self.coming < self.wanted {
            return (ModelState::Degraded, self.trouble.clone());
        }
        (ModelState::Ready, self.trouble.clone())
    }

    /// Lanes that would answer a request now, and rightly.
    pub(crate) fn trusted(&self) -> u32 {
        if self.suspect.is_some() { 0 } else { self.healthy }
    }

    pub(super) fn is_hopeless(&self) -> bool {
        self.healthy == 0 && self.coming == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_follows_the_lanes() {
        let degraded = Some("on the cpu".to_owned());
        let table = [
            // wanted, healthy, coming, degraded → state
            ((2, 2, 0, None), ModelState::Ready),
            ((2, 1, 1, None), ModelState::Ready),
            ((2, 0, 1, None), ModelState::Degraded),
            ((2, 1, 0, None), ModelState::Degraded),
            ((2, 0, 0, None), ModelState::Failed),
            ((1, 0, 1, None), ModelState::Ready),
            ((2, 2, 0, degraded.clone()), ModelState::Degraded),
            ((2, 0, 0, degraded), ModelState::Failed),
        ];
        for ((wanted, healthy, coming, degraded), state) in table {
            let condition =
                Condition { wanted, healthy, coming, degraded, trouble: None, suspect: None };
            assert_eq!(condition.verdict().0, state, "{condition:?}");
        }
    }
}
