//! Execution providers: registering what was asked for, or failing with the missing piece named.

use super::one_line;
use crate::engine::BuildError;
use crate::provider::Provider;
use ort::ep;
use ort::ep::ExecutionProviderDispatch;
use ort::session::builder::SessionBuilder;

/// Registers `providers` strictly, in order.
///
/// Unless `cpu` is among them, nodes that no provider takes are an error too: the runtime's habit of moving
/// them to the CPU without a word is how a GPU service becomes a slow one unseen.
pub(super) fn register(
    mut builder: SessionBuilder,
    providers: &[Provider],
) -> Result<SessionBuilder, BuildError> {
    for provider in providers {
        builder = builder
            .with_execution_providers([dispatch(*provider).error_on_failure()])
            .map_err(|error| BuildError::Provider {
                provider: *provider,
                reason: one_line(error.message()),
            })?;
    }
    if !providers.contains(&Provider::Cpu) {
        builder = builder.with_disable_cpu_fallback()?;
    }
    Ok(builder)
}

/// Tells a provider that failed while the session was made from a graph that was refused.
pub(super) fn classify(message: &str, providers: &[Provider]) -> BuildError {
    let reason = one_line(message);
    let accelerator = providers.iter().find(|provider| **provider != Provider::Cpu);
    match accelerator {
        Some(provider) if names_provider_trouble(&reason) => {
            BuildError::Provider { provider: *provider, reason }
        }
        _ => BuildError::Graph(reason),
    }
}

fn names_provider_trouble(reason: &str) -> bool {
    const SIGNS: [&str; 9] = [
        "CUDA",
        "cuda",
        "cuDNN",
        "TensorRT",
        "OpenVINO",
        "ExecutionProvider",
        "disable_cpu_ep_fallback",
        "fallback to CPU",
        "HIP",
    ];
    SIGNS.iter().any(|sign| reason.contains(sign))
}

fn dispatch(provider: Provider) -> ExecutionProviderDispatch {
    match provider {
        Provider::Cpu => ep::CPU::default().build(),
        Provider::Cuda => ep::CUDA::default().build(),
        Provider::TensorRt => ep::TensorRT::default().build(),
        Provider::OpenVino => ep::OpenVINO::default().build(),
        Provider::Rocm => ep::ROCm::default().build(),
        Provider::MiGraphX => ep::MIGraphX::default().build(),
        Provider::CoreMl => ep::CoreML::default().build(),
        Provider::DirectMl => ep::DirectML::default().build(),
        Provider::Xnnpack => ep::XNNPACK::default().build(),
        Provider::OneDnn => ep::OneDNN::default().build(),
        Provider::Acl => ep::ACL::default().build(),
        Provider::Qnn => ep::QNN::default().build(),
        Provider::Cann => ep::CANN::default().build(),
    }
}
