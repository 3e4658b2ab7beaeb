//! Finding the ONNX Runtime library.

use std::path::{Path, PathBuf};

/// Name of the library as `make ort` leaves it.
const LIBRARY: &str = "libonnxruntime.so";
/// Folder beside the sources, into which `make ort` brings it.
const FETCHED: &str = ".ort";
/// Where images and packages put it.
const SYSTEM: [&str; 3] = ["/usr/local/lib", "/usr/lib", "/opt/onnxruntime/lib"];

/// The library to load: the configured one, else the first that exists of: beside the program, in `.ort/` of the
/// working folder or of any folder above the program, in the system's library folders. When there is none, the path
/// where `make ort` would put it, so that the error names it.
pub fn find(configured: Option<&Path>) -> PathBuf {
    if let Some(path) = configured {
        return path.to_owned();
    }
    let program = std::env::current_exe().ok();
    let candidates = candidates(program.as_deref());
    candidates
        .into_iter()
        .find(|candidate| candidate.is_file())
        .unwrap_or_else(|| Path::new(FETCHED).join(LIBRARY))
}

fn candidates(program: Option<&Path>) -> Vec<PathBuf> {
    let mut found = Vec::new();
    if let Some(folder) = program.and_then(Path::parent) {
        found.push(folder.join(LIBRARY));
        found.push(folder.join("../lib").join(LIBRARY));
    }
    found.push(Path::new(FETCHED).join(LIBRARY));
    if let Some(program) = program {
        // `target/release/balm` lies two folders below the checkout, a test binary three.
        found.extend(program.ancestors().skip(1).take(4).map(|f| f.join(FETCHED).join(LIBRARY)));
    }
    found.extend(SYSTEM.iter().map(|folder| Path::new(folder).join(LIBRARY)));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configured_library_is_taken_unseen() {
        assert_eq!(find(Some(Path::new("/no/such"))), Path::new("/no/such"));
    }

    #[test]
    fn a_program_in_target_finds_the_checkout() {
        let candidates = candidates(Some(Path::new("/src/balm/target/release/balm")));
        assert!(candidates.contains(&PathBuf::from("/src/balm/.ort/libonnxruntime.so")));
    }
}
