//! The golden requests of a load.

use super::run_limit::RunLimit;
use crate::engine::Session;
use crate::golden::GoldenCase;
use crate::tensor::NamedTensor;

/// Judges a session by the golden requests: it must answer all of them as recorded.
pub(super) fn probe(
    session: &mut dyn Session,
    cases: &[GoldenCase],
    limit: &RunLimit,
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
        let found = limit.run(session, &inputs, &outputs).map_err(at)?;
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
