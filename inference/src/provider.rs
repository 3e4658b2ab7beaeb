//! Execution providers: what a session computes on.

use crate::clip::clipped;
use std::fmt;
use std::str::FromStr;

/// An execution provider that a model may ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Provider {
    /// The processor, always there.
    #[default]
    Cpu,
    /// NVIDIA CUDA.
    Cuda,
    /// NVIDIA TensorRT.
    TensorRt,
    /// Intel OpenVINO.
    OpenVino,
    /// AMD ROCm.
    Rocm,
    /// AMD MIGraphX.
    MiGraphX,
    /// Apple CoreML.
    CoreMl,
    /// Microsoft DirectML.
    DirectMl,
    /// XNNPACK, on processors.
    Xnnpack,
    /// Intel oneDNN, on processors.
    OneDnn,
    /// Arm Compute Library.
    Acl,
    /// Qualcomm AI Engine.
    Qnn,
    /// Huawei CANN.
    Cann,
}

impl Provider {
    /// Every provider.
    pub const ALL: [Provider; 13] = [
        Provider::Cpu,
        Provider::Cuda,
        Provider::TensorRt,
        Provider::OpenVino,
        Provider::Rocm,
        Provider::MiGraphX,
        Provider::CoreMl,
        Provider::DirectMl,
        Provider::Xnnpack,
        Provider::OneDnn,
        Provider::Acl,
        Provider::Qnn,
        Provider::Cann,
    ];

    /// The word in configuration, logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Provider::Cpu => "cpu",
            Provider::Cuda => "cuda",
            Provider::TensorRt => "tensorrt",
            Provider::OpenVino => "openvino",
            Provider::Rocm => "rocm",
            Provider::MiGraphX => "migraphx",
            Provider::CoreMl => "coreml",
            Provider::DirectMl => "directml",
            Provider::Xnnpack => "xnnpack",
            Provider::OneDnn => "onednn",
            Provider::Acl => "acl",
            Provider::Qnn => "qnn",
            Provider::Cann => "cann",
        }
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text is not the name of a provider.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown provider {0:?}; known are cpu, cuda, tensorrt, openvino, rocm, migraphx, coreml, directml, xnnpack, onednn, acl, qnn and cann"
)]
pub struct UnknownProvider(pub String);

impl FromStr for Provider {
    type Err = UnknownProvider;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Provider::ALL
            .into_iter()
            .find(|provider| provider.name() == name)
            .ok_or_else(|| UnknownProvider(clipped(name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways_and_the_message_lists_them_all() {
        let message = "gpu".parse::<Provider>().unwrap_err().to_string();
        for provider in Provider::ALL {
            assert_eq!(provider.name().parse(), Ok(provider));
            assert!(message.contains(provider.name()), "{message}");
        }
    }
}
