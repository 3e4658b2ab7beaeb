//! What an error of an execution provider means for the process: the table, and who counts.
//!
//! Some errors leave the device context of the whole process broken: each later call fails with the same, in every session, and
//! only another process helps. NVIDIA says so of these in the documentation of `cudaError`, in the same words for each ("leaves
//! the process in an inconsistent state and any further CUDA work will return the same error. To continue using CUDA, the process
//! must be terminated and relaunched"). HIP has taken the numbers over (`hipError_t`). ONNX Runtime writes number and text into
//! its messages (`CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; …`), and has no code of its own for them.
//!
//! cuDNN and cuBLAS say `EXECUTION_FAILED` for a lost context as well as for a lack of memory, so that alone is no proof: the next
//! call to the runtime itself tells them apart, with one of the numbers below.

use crate::ladder::Trouble;

/// What an error means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProviderError {
    /// Every later call of this process fails, too.
    Sticky,
    /// The memory of the device did not suffice for this run.
    OutOfMemory,
}

/// Words before a number of the runtime, as ONNX Runtime writes them.
const NUMBERED: [&str; 4] = ["CUDA failure ", "CUDA error ", "HIP failure ", "HIP error "];

/// `cudaError` and `hipError_t`: out of memory.
const OUT_OF_MEMORY: u32 = 2;
/// `cudaError` and `hipError_t` that leave the process in an inconsistent state.
const STICKY: [u32; 10] = [
    214, // ECC error that cannot be corrected
    700, // illegal address
    702, // launch timed out
    710, // assertion on the device
    714, // hardware stack error
    715, // illegal instruction
    716, // misaligned address
    717, // invalid address space
    718, // invalid program counter
    719, // launch failure
];

/// The same as words, for providers and libraries that give no number.
const STICKY_WORDS: [&str; 13] = [
    "an illegal memory access was encountered",
    "cudaErrorIllegalAddress",
    "hipErrorIllegalAddress",
    "device-side assert triggered",
    "an illegal instruction was encountered",
    "misaligned address",
    "unspecified launch failure",
    "hipErrorLaunchFailure",
    "the launch timed out and was terminated",
    "uncorrectable ECC error encountered",
    // Direct3D: the adapter is gone for this process (`DXGI_ERROR_DEVICE_REMOVED`, `…_HUNG`, `…_RESET`).
    "DXGI_ERROR_DEVICE_",
    "887A0005",
    "device lost",
];

/// Words of a device that has no memory left; what is said of the memory of the processor is not among them.
const MEMORY_WORDS: [&str; 3] =
    ["CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "hipErrorOutOfMemory"];

/// What the text of an error says about the provider; `None` where it says nothing.
pub fn classify(text: &str) -> Option<ProviderError> {
    match numbers(text).find_map(of_number) {
        Some(found) => Some(found),
        None if STICKY_WORDS.iter().any(|words| text.contains(words)) => {
            Some(ProviderError::Sticky)
        }
        None if MEMORY_WORDS.iter().any(|words| text.contains(words)) => {
            Some(ProviderError::OutOfMemory)
        }
        None => None,
    }
}

fn of_number(number: u32) -> Option<ProviderError> {
    if STICKY.contains(&number) {
        Some(ProviderError::Sticky)
    } else if number == OUT_OF_MEMORY {
        Some(ProviderError::OutOfMemory)
    } else {
        None
    }
}

/// The numbers of the runtime that a text names.
fn numbers(text: &str) -> impl Iterator<Item = u32> {
    NUMBERED.into_iter().flat_map(move |words| {
        text.match_indices(words).filter_map(move |(at, _)| {
            let rest = text.get(at + words.len()..)?;
            let digits = rest.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(rest.len());
            rest.get(..digits)?.parse().ok()
        })
    })
}

/// So many runs in a row without memory on the device, and the provider is in trouble.
pub const OUT_OF_MEMORY_MAX: u32 = 3;

/// Counts what a provider of one version does. Which rung that leads to is the ladder's to say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProviderWatch {
    without_memory: u32,
}

impl ProviderWatch {
    /// A run was answered.
    pub fn answered(&mut self) {
        self.without_memory = 0;
    }

    /// A run failed so. What trouble that makes, if any.
    pub fn failed(&mut self, error: ProviderError) -> Option<Trouble> {
        match error {
            ProviderError::Sticky => Some(Trouble::ProviderFailed { sticky: true }),
            ProviderError::OutOfMemory => {
                self.without_memory += 1;
                if self.without_memory < OUT_OF_MEMORY_MAX {
                    return None;
                }
                self.without_memory = 0;
                Some(Trouble::ProviderFailed { sticky: false })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_sticky_and_what_is_not() {
        use ProviderError::{OutOfMemory, Sticky};
        let table = [
            (
                "Non-zero status code returned while running Conv node. Name:'c' Status Message: CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=h ; file=f ; line=1 ; expr=e",
                Some(Sticky),
            ),
            ("CUDA failure 716: misaligned address ; GPU=0", Some(Sticky)),
            ("CUDA failure 719: unspecified launch failure", Some(Sticky)),
            ("HIP failure 719: hipErrorLaunchFailure", Some(Sticky)),
            ("CUDA failure 710", Some(Sticky)),
            ("CUDNN failure 5000: CUDNN_STATUS_EXECUTION_FAILED", None),
            (
                "CUDNN failure 5000: CUDNN_STATUS_EXECUTION_FAILED; then CUDA failure 700: an illegal memory access was encountered",
                Some(Sticky),
            ),
            ("CUDA error: device-side assert triggered", Some(Sticky)),
            ("[ErrorCode:Fail] DXGI_ERROR_DEVICE_REMOVED", Some(Sticky)),
            ("CUDA driver reported device lost", Some(Sticky)),
            ("CUDA failure 2: out of memory ; GPU=0", Some(OutOfMemory)),
            ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED", Some(OutOfMemory)),
            ("Failed to allocate memory for requested buffer of size 7", None),
            ("CUDA failure 1: invalid argument", None),
            ("CUDA failure 7000: no such thing", None),
            ("CUDA failure : nothing", None),
            ("CUDA failure 99999999999: too much", None),
            ("std::bad_alloc", None),
            ("", None),
        ];
        for (text, meaning) in table {
            assert_eq!(classify(text), meaning, "{text}");
        }
        for number in 0..1_000u32 {
            let expected = match number {
                214 | 700 | 702 | 710 | 714..=719 => Some(Sticky),
                2 => Some(OutOfMemory),
                _ => None,
            };
            assert_eq!(classify(&format!("CUDA failure {number}: x")), expected, "{number}");
        }
    }

    #[test]
    fn three_in_a_row_without_memory_are_trouble() {
        let mut watch = ProviderWatch::default();
        let mut failed = |error| watch.failed(error);
        assert_eq!(failed(ProviderError::OutOfMemory), None);
        assert_eq!(failed(ProviderError::OutOfMemory), None);
        assert_eq!(
            failed(ProviderError::OutOfMemory),
            Some(Trouble::ProviderFailed { sticky: false })
        );
        assert_eq!(failed(ProviderError::OutOfMemory), None, "counted anew");
        assert_eq!(failed(ProviderError::Sticky), Some(Trouble::ProviderFailed { sticky: true }));
        assert_eq!(failed(ProviderError::OutOfMemory), None);
        watch.answered();
        assert_eq!(watch, ProviderWatch::default());
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange(text in ".{0,200}") {
            let _ = classify(&text);
            let _ = classify(&format!("CUDA failure {text}"));
        }
    }
}
