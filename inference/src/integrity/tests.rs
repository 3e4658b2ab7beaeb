//! Every bad version of the issue, as real files.

use super::*;
use crate::onnx_graph::GraphError;
use crate::onnx_graph::writer::{external, graph, message, model, opset};
use rustix::fs::{CWD, FileType, Mode, mkfifoat, mknodat};
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A repository in a temporary folder, opened both ways.
struct Fixture {
    temporary: TempDir,
}

impl Fixture {
    /// `m/1` with the plain model and its manifest.
    fn plain() -> Self {
        let fixture = Fixture { temporary: tempfile::tempdir().unwrap() };
        fixture.write("m/1/model.onnx", model(&[]));
        fixture.manifest("m/1");
        fixture
    }

    /// `m/1` with weights beside the model.
    fn with_external(location: &str) -> Self {
        let fixture = Fixture { temporary: tempfile::tempdir().unwrap() };
        let tensor = external(&[2], &[("location", location), ("length", "8")]);
        fixture.write("m/1/model.onnx", model(&[tensor]));
        fixture
    }

    fn root(&self) -> PathBuf {
        self.temporary.path().join("models")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn link(&self, target: impl AsRef<Path>, name: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    }

    fn manifest(&self, version: &str) -> Manifest {
        write_manifest(&RootDir::open(self.root()).unwrap(), Path::new(version)).unwrap()
    }

    fn read_with(&self, options: &ReadOptions) -> Result<VerifiedModel, IntegrityError> {
        let version = Path::new("m/1");
        let progress = Progress::default();
        let by_kernel = RootDir::open(self.root()).unwrap();
        let answer = read_version(&by_kernel, version, options, &progress);
        // Whatever the kernel's own way says, the walk by hand must say.
        let by_hand = RootDir::open_by_hand(self.root()).unwrap();
        match (&answer, read_version(&by_hand, version, options, &Progress::default())) {
            (Ok(one), Ok(other)) => {
                assert_eq!((one.digest, &one.files), (other.digest, &other.files));
                assert_eq!(progress.phase(), ReadPhase::Done);
                assert_eq!(progress.bytes_done(), one.bytes_read);
                assert_eq!(progress.bytes_total(), one.bytes_read);
            }
            (Err(one), Err(other)) => assert_eq!(one.to_string(), other.to_string()),
            (one, other) => panic!("by kernel {one:?}, by hand {other:?}"),
        }
        answer
    }

    fn read(&self, policy: Policy) -> Result<VerifiedModel, IntegrityError> {
        self.read_with(&ReadOptions { policy, ..ReadOptions::default() })
    }

    fn refusal(&self, policy: Policy) -> String {
        self.read(policy).unwrap_err().to_string()
    }
}

#[test]
fn a_good_version_is_read_and_verified() {
    let fixture = Fixture::plain();
    fixture.write("m/1/golden.json", "{}");
    fixture.write("m/1/notes/readme.txt", "");
    fixture.manifest("m/1");
    let version = fixture.read(Policy::Required).unwrap();
    assert!(version.verified);
    assert_eq!(version.model, model(&[]));
    assert_eq!(version.digest, Digest::of(&model(&[])));
    assert_eq!(version.golden.as_deref(), Some(b"{}".as_slice()));
    assert_eq!(version.graph.opsets, [(String::new(), 17)]);
    let names: Vec<&str> = version.files.keys().map(String::as_str).collect();
    assert_eq!(names, ["golden.json", "model.onnx", "notes/readme.txt"]);
}

#[test]
fn policies_differ_in_what_they_ask() {
    let fixture = Fixture::plain();
    fixture.write("m/1/extra", "x");
    assert!(fixture.refusal(Policy::Digest).contains("m/1/extra: is present but not listed"));
    assert!(!fixture.read(Policy::Off).unwrap().verified);
    fs::remove_file(fixture.path("m/1/SHA256SUMS")).unwrap();
    let version = fixture.read(Policy::Digest).unwrap();
    assert!(!version.verified);
    assert_eq!(version.files.len(), 1);
    assert!(fixture.refusal(Policy::Required).starts_with("m/1: there is no SHA256SUMS"));
}

#[test]
fn a_manifest_that_leads_nowhere_is_not_an_absent_one() {
    let fixture = Fixture::plain();
    fs::remove_file(fixture.path("m/1/SHA256SUMS")).unwrap();
    fixture.link("nowhere", "m/1/SHA256SUMS");
    assert!(fixture.refusal(Policy::Digest).starts_with("m/1/SHA256SUMS: is missing"));
    fs::remove_file(fixture.path("m/1/SHA256SUMS")).unwrap();
    fs::create_dir(fixture.path("m/1/SHA256SUMS")).unwrap();
    assert!(fixture.refusal(Policy::Digest).contains("SHA256SUMS: is a directory"));
}

#[test]
fn one_flipped_bit_anywhere_is_refused_with_both_digests() {
    let fixture = Fixture::plain();
    let bytes = model(&[]);
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        fixture.write("m/1/model.onnx", &flipped);
        let message = fixture.refusal(Policy::Digest);
        assert_eq!(
            message,
            format!(
                "m/1/model.onnx: SHA-256 is {}, SHA256SUMS expects {}",
                Digest::of(&flipped),
                Digest::of(&bytes)
            )
        );
    }
}

#[test]
fn truncated_files_are_refused_under_every_policy() {
    let fixture = Fixture::plain();
    let bytes = model(&[]);
    fixture.write("m/1/model.onnx", &bytes[..bytes.len() / 2]);
    assert!(fixture.refusal(Policy::Digest).contains("SHA-256 is"));
    let message = fixture.refusal(Policy::Off);
    assert!(message.starts_with("m/1/model.onnx: is not a valid ONNX file: "), "{message}");
    assert!(message.contains("at byte"), "{message}");
}

#[test]
fn external_data_is_read_from_the_hashed_bytes() {
    let fixture = Fixture::with_external("data/w.bin");
    fixture.write("m/1/data/w.bin", [7; 8]);
    let manifest = fixture.manifest("m/1");
    for policy in [Policy::Off, Policy::Digest, Policy::Required] {
        let version = fixture.read(policy).unwrap();
        let [(location, bytes)] = version.external.as_slice() else { panic!() };
        assert_eq!((location.as_str(), &**bytes), ("data/w.bin", [7; 8].as_slice()));
        // The names sort as data/w.bin, model.onnx.
        let digests = ["data/w.bin", "model.onnx"].map(|name| manifest.get(name).unwrap().0);
        assert_eq!(version.digest, Digest::of(&digests.concat()));
    }
}

#[test]
fn bad_external_data_is_refused() {
    let missing = Fixture::with_external("w.bin");
    let expected = "m/1/w.bin: is missing; model.onnx (external data) names it";
    assert_eq!(missing.refusal(Policy::Off), expected);
    missing.manifest("m/1");
    assert!(missing.refusal(Policy::Digest).contains("\"w.bin\", which is not listed"));

    let unlisted = Fixture::with_external("w.bin");
    unlisted.manifest("m/1");
    unlisted.write("m/1/w.bin", [7; 8]);
    assert!(unlisted.refusal(Policy::Digest).contains("m/1/w.bin: is present but not listed"));

    let hidden = Fixture::with_external(".w.bin");
    hidden.write("m/1/.w.bin", [7; 8]);
    hidden.manifest("m/1");
    assert!(hidden.refusal(Policy::Digest).contains("\".w.bin\", which is not listed"));

    let listed_but_gone = Fixture::with_external("w.bin");
    listed_but_gone.write("m/1/w.bin", [7; 8]);
    listed_but_gone.manifest("m/1");
    fs::remove_file(listed_but_gone.path("m/1/w.bin")).unwrap();
    let expected = "m/1/w.bin: is missing; SHA256SUMS names it";
    assert_eq!(listed_but_gone.refusal(Policy::Digest), expected);

    let changed = Fixture::with_external("w.bin");
    changed.write("m/1/w.bin", [7; 8]);
    changed.manifest("m/1");
    changed.write("m/1/w.bin", [8; 8]);
    assert!(changed.refusal(Policy::Digest).starts_with("m/1/w.bin: SHA-256 is"));

    let short = Fixture::with_external("w.bin");
    short.write("m/1/w.bin", [7; 7]);
    assert!(short.refusal(Policy::Off).contains("go beyond the 7 bytes of \"w.bin\""));

    let empty = Fixture::with_external("w.bin");
    empty.write("m/1/w.bin", []);
    assert_eq!(empty.refusal(Policy::Off), "m/1/w.bin: is empty (0 bytes)");
}

#[test]
fn locations_that_are_not_plain_names_are_refused_under_every_policy() {
    let outside = "../../secret";
    for location in [outside, "/etc/hostname", "./w.bin", "model.onnx", "SHA256SUMS"] {
        let fixture = Fixture::with_external(location);
        fixture.write("secret", [7; 8]);
        for policy in [Policy::Off, Policy::Digest] {
            let message = fixture.refusal(policy);
            assert!(
                message.starts_with("m/1/model.onnx: tensor \"w\" has its data in"),
                "{message}"
            );
        }
        if location != "SHA256SUMS" {
            fixture.manifest("m/1");
            assert!(fixture.refusal(Policy::Required).contains("has its data in"));
        }
    }
}

#[test]
fn links_beneath_the_root_are_followed_and_links_out_are_refused() {
    let fixture = Fixture::plain();
    fs::write(fixture.temporary.path().join("outside"), model(&[])).unwrap();
    fixture.write("blobs/abc", model(&[]));
    let path = fixture.path("m/1/model.onnx");
    for (target, accepted) in [
        (PathBuf::from("../../blobs/abc"), true),
        (PathBuf::from("../../../models/blobs/abc"), false),
        (PathBuf::from("../../../outside"), false),
        (fixture.temporary.path().join("outside"), false),
        (fixture.path("blobs/abc"), false),
        (PathBuf::from("/proc/self/exe"), false),
    ] {
        fs::remove_file(&path).unwrap();
        symlink(&target, &path).unwrap();
        for policy in [Policy::Off, Policy::Digest] {
            match fixture.read(policy) {
                Ok(_) => assert!(accepted, "{target:?}"),
                Err(error) => {
                    assert!(!accepted, "{target:?}: {error}");
                    assert!(matches!(error, IntegrityError::Escapes { .. }), "{error}");
                }
            }
        }
    }
    fs::remove_file(&path).unwrap();
    symlink("model.onnx", &path).unwrap();
    assert!(fixture.refusal(Policy::Off).contains("more than 40 symbolic links"));
}

#[test]
fn external_data_behind_a_link_out_is_refused() {
    let fixture = Fixture::with_external("w.bin");
    fs::write(fixture.temporary.path().join("secret"), [7; 8]).unwrap();
    fixture.link("../../../secret", "m/1/w.bin");
    let error = fixture.read(Policy::Off).unwrap_err();
    assert!(matches!(error, IntegrityError::Escapes { .. }), "{error}");

    let through_folder = Fixture::with_external("data/w.bin");
    fs::create_dir(through_folder.temporary.path().join("data")).unwrap();
    fs::write(through_folder.temporary.path().join("data/w.bin"), [7; 8]).unwrap();
    through_folder.link("../../../data", "m/1/data");
    let error = through_folder.read(Policy::Off).unwrap_err();
    assert!(matches!(error, IntegrityError::Escapes { .. }), "{error}");
}

#[test]
fn kubernetes_layouts_are_fine() {
    // The model's folder is a link through ..data.
    let by_model = Fixture { temporary: tempfile::tempdir().unwrap() };
    by_model.write("..2026_01/m/1/model.onnx", model(&[]));
    by_model.manifest("..2026_01/m/1");
    by_model.link("..2026_01", "..data");
    by_model.link("..data/m", "m");
    assert!(by_model.read(Policy::Required).unwrap().verified);

    // The version's folder is a link through ..data.
    let by_version = Fixture { temporary: tempfile::tempdir().unwrap() };
    by_version.write("m/..2026_01/1/model.onnx", model(&[]));
    by_version.manifest("m/..2026_01/1");
    by_version.link("..2026_01", "m/..data");
    by_version.link("..data/1", "m/1");
    assert!(by_version.read(Policy::Required).unwrap().verified);

    // The version's folder is the mount: each file is a link through ..data.
    let by_file = Fixture::with_external("w.bin");
    by_file.write("m/1/w.bin", [7; 8]);
    by_file.manifest("m/1");
    fs::create_dir(by_file.path("m/1/..2026_01")).unwrap();
    for file in ["model.onnx", "w.bin", "SHA256SUMS"] {
        let moved = by_file.path("m/1/..2026_01").join(file);
        fs::rename(by_file.path("m/1").join(file), moved).unwrap();
        by_file.link(Path::new("..data").join(file), &format!("m/1/{file}"));
    }
    by_file.link("..2026_01", "m/1/..data");
    let version = by_file.read(Policy::Required).unwrap();
    assert!(version.verified);
    assert_eq!(version.files.len(), 2);
}

#[test]
fn only_regular_files_are_read_and_nothing_hangs() {
    let fixture = Fixture::plain();
    let path = fixture.path("m/1/model.onnx");
    fs::remove_file(&path).unwrap();

    mkfifoat(CWD, &path, Mode::RUSR | Mode::WUSR).unwrap();
    for policy in [Policy::Off, Policy::Digest] {
        let expected = "m/1/model.onnx: is a named pipe (FIFO), a regular file is needed";
        assert_eq!(fixture.refusal(policy), expected);
    }
    fs::remove_file(&path).unwrap();

    fs::create_dir(&path).unwrap();
    for policy in [Policy::Off, Policy::Digest] {
        let expected = "m/1/model.onnx: is a directory, a regular file is needed";
        assert_eq!(fixture.refusal(policy), expected);
    }
    fs::remove_dir(&path).unwrap();

    let socket = UnixListener::bind(&path).unwrap();
    assert!(fixture.refusal(Policy::Off).contains("is a socket"));
    drop(socket);
    fs::remove_file(&path).unwrap();

    // /dev/null, where the test may make devices.
    let device = rustix::fs::makedev(1, 3);
    if mknodat(CWD, &path, FileType::CharacterDevice, Mode::RUSR, device).is_ok() {
        let message = fixture.refusal(Policy::Off);
        assert!(message.contains("is a device") || message.contains("denied"), "{message}");
        fs::remove_file(&path).unwrap();
    }

    assert!(fixture.refusal(Policy::Off).contains("m/1/model.onnx: is missing"));
    assert!(fixture.refusal(Policy::Digest).contains("m/1/model.onnx: is missing"));
    fs::remove_dir_all(fixture.path("m/1")).unwrap();
    assert_eq!(fixture.refusal(Policy::Digest), "m/1: there is no such version folder");
    fixture.write("m/1", "a file where the folder should be");
    assert_eq!(fixture.refusal(Policy::Digest), "m/1: there is no such version folder");
}

#[test]
fn a_fifo_beside_the_model_is_not_listed_and_not_opened() {
    let fixture = Fixture::plain();
    mkfifoat(CWD, fixture.path("m/1/pipe"), Mode::RUSR).unwrap();
    assert!(fixture.refusal(Policy::Digest).contains("m/1/pipe: is present but not listed"));
    let root = RootDir::open(fixture.root()).unwrap();
    let error = write_manifest(&root, Path::new("m/1")).unwrap_err();
    assert!(error.to_string().contains("m/1/pipe: is a named pipe"), "{error}");
}

#[test]
fn sizes_are_bounded_before_anything_is_allocated() {
    let fixture = Fixture::plain();
    fixture.write("m/1/model.onnx", "");
    assert_eq!(fixture.refusal(Policy::Off), "m/1/model.onnx: is empty (0 bytes)");
    assert_eq!(fixture.refusal(Policy::Digest), "m/1/model.onnx: is empty (0 bytes)");

    // Holes, which take no disk: one byte more than protobuf allows, and far more than any limit.
    for (size, expected) in [(1u64 << 31, "at most 2147483647"), (1 << 42, "at most 2147483647")] {
        let file = fs::File::create(fixture.path("m/1/model.onnx")).unwrap();
        if file.set_len(size).is_err() {
            continue;
        }
        for policy in [Policy::Off, Policy::Digest] {
            let message = fixture.refusal(policy);
            assert!(message.contains(expected), "{message}");
        }
    }
    fixture.write("m/1/model.onnx", model(&[]));
    let options = ReadOptions { max_bytes: 10, ..ReadOptions::default() };
    let message = fixture.read_with(&options).unwrap_err().to_string();
    assert!(message.contains("at most 10 are allowed"), "{message}");
}

#[test]
fn an_opset_that_is_too_new_is_refused() {
    let fixture = Fixture { temporary: tempfile::tempdir().unwrap() };
    let bytes = message().varint(1, 8).message(7, graph(&[])).message(8, opset("", 99)).0;
    fixture.write("m/1/model.onnx", bytes);
    let error = fixture.read(Policy::Off).unwrap_err();
    assert_eq!(error.reason(), "bad_graph");
    assert!(matches!(
        error,
        IntegrityError::Graph { source: GraphError::Opset { found: 99, limit: 26, .. }, .. }
    ));
}

#[test]
fn nothing_is_parsed_before_its_digest_matched() {
    let fixture = Fixture::plain();
    fixture.write("m/1/model.onnx", "no protobuf at all");
    assert!(fixture.refusal(Policy::Digest).contains("SHA-256 is"));
    assert!(fixture.refusal(Policy::Off).contains("is not a valid ONNX file"));
}

#[test]
fn a_file_that_nobody_needs_is_verified_too() {
    let fixture = Fixture::plain();
    fixture.write("m/1/golden.json", "{}");
    fixture.write("m/1/vocabulary.txt", "a");
    fixture.manifest("m/1");
    fixture.write("m/1/vocabulary.txt", "b");
    assert!(fixture.refusal(Policy::Digest).starts_with("m/1/vocabulary.txt: SHA-256 is"));
    fixture.write("m/1/vocabulary.txt", "a");
    fixture.write("m/1/golden.json", "[]");
    assert!(fixture.refusal(Policy::Digest).starts_with("m/1/golden.json: SHA-256 is"));
}

#[test]
fn bad_manifests_name_file_and_line() {
    let fixture = Fixture::plain();
    fixture.write("m/1/SHA256SUMS", "\r\n");
    assert!(fixture.refusal(Policy::Digest).starts_with("m/1/SHA256SUMS: line 1 ends in a carri"));
    fixture.write("m/1/SHA256SUMS", "");
    let expected = "m/1/model.onnx: is present but not listed in SHA256SUMS";
    assert!(fixture.refusal(Policy::Digest).starts_with(expected));
    fixture.write("m/1/SHA256SUMS", vec![b'\n'; 2 << 20]);
    assert!(fixture.refusal(Policy::Digest).contains("at most 1048576 are read"));
    assert_eq!(fixture.read(Policy::Digest).unwrap_err().reason(), "bad_manifest");
}

#[test]
fn folders_in_a_circle_end() {
    let fixture = Fixture::plain();
    fixture.link(".", "m/1/again");
    assert!(fixture.refusal(Policy::Digest).contains("holds more than 16 levels of folders"));
}

#[test]
fn the_written_manifest_is_what_sha256sum_reads() {
    let fixture = Fixture::plain();
    fixture.write("m/1/.hidden", "x");
    fixture.write("m/1/data/back\\slash", "x");
    fixture.write("m/1/data/line\nbreak", "x");
    let manifest = fixture.manifest("m/1");
    let names: Vec<&str> = manifest.iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["data/back\\slash", "data/line\nbreak", "model.onnx"]);
    assert_eq!(fixture.manifest("m/1"), manifest);
    assert!(fixture.read(Policy::Required).unwrap().verified);
    let left = fs::read_dir(fixture.path("m/1")).unwrap().count();
    assert_eq!(left, 4, "no temporary file stays");
    let check = std::process::Command::new("sha256sum")
        .args(["--check", "--strict", "--quiet", MANIFEST_FILE])
        .current_dir(fixture.path("m/1"))
        .output();
    if let Ok(output) = check {
        assert!(output.status.success(), "{output:?}");
    }
}

#[test]
fn a_replacement_under_way_is_told_from_damage() {
    // The manifest is another one by the time the digest differs.
    let fixture = Fixture::plain();
    let root = RootDir::open(fixture.root()).unwrap();
    let options = ReadOptions::default();
    let progress = Progress::default();
    fixture.write("m/1/model.onnx", model(&[message()]));
    let error = version::read_with_hook(&root, Path::new("m/1"), &options, &progress, || {
        fixture.manifest("m/1");
    })
    .unwrap_err();
    assert!(matches!(error, IntegrityError::Changed { .. }), "{error}");
    assert!(error.retryable());
    assert!(fixture.read(Policy::Digest).is_ok());
}
