//! Requests of a load: each has the longest deadline that any client could ask for, so that none holds a load for ever.

use crate::engine::{RunOutput, Session};
use crate::golden::GoldenCase;
use crate::tensor::{NamedTensor, Tensor};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

/// Judges a session by the golden requests: it must answer all of them as recorded.
pub(super) fn probe(
    session: &mut dyn Session,
    cases: &[GoldenCase],
    limit: Duration,
) -> Result<(), String> {
    for case in cases {
        let at = |reason: String| format!("golden case {:?}: {reason}", case.name);
        let contract = session.contract();
        let inputs = contract
            .accept(case.inputs.clone(), usize::MAX)
            .map_err(|error| at(error.to_string()))?;
        let outputs = contract
            .select_outputs(case.outputs.iter().map(|output| output.name.as_str()))
            .map_err(|error| at(error.to_string()))?;
        let found = run_within(session, &inputs, &outputs, limit).map_err(at)?;
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

/// One run, which is told to stop when it takes longer than `limit`.
pub(super) fn run_within(
    session: &mut dyn Session,
    inputs: &[Tensor],
    outputs: &[usize],
    limit: Duration,
) -> Result<RunOutput, String> {
    let canceller = session.canceller();
    session.rearm();
    let (ended, until_ended) = sync_channel::<()>(1);
    thread::scope(|scope| {
        let guard =
            thread::Builder::new().name("probe-limit".to_owned()).spawn_scoped(scope, move || {
                let late = until_ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout);
                if late {
                    canceller.cancel();
                }
                late
            });
        let guard = guard.map_err(|error| format!("its guard did not start: {error}"))?;
        let found = session.run(inputs, outputs).map_err(|error| error.to_string());
        drop(ended);
        if guard.join().unwrap_or(false) {
            return Err(format!(
                "it was not answered within {} ms, the longest deadline (max_deadline_ms)",
                limit.as_millis()
            ));
        }
        found
    })
}
