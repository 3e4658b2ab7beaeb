//! Each use of a fault is claimed once, and what is written wrongly is refused with a reason.

use super::act::{Act, changed};
use super::fault::{At, Fault, Place, Times};
use super::faults::Faults;
use crate::datatype::Datatype;
use crate::tensor::{Tensor, TensorData};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;
use tempfile::TempDir;

fn folder(mode: u32) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).unwrap();
    folder
}

fn place(folder: &Path, name: &str, text: &str) {
    fs::write(folder.join(name).with_extension("json"), text).unwrap();
}

fn traces(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder.join("done")).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn floats(shape: &[usize], values: &[f32]) -> Tensor {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Tensor::raw(Datatype::Fp32, shape.to_vec(), bytes.into()).unwrap()
}

#[test]
fn only_a_private_folder_is_taken() {
    assert!(Faults::open(folder(0o700).path()).is_ok());
    for mode in [0o755, 0o750, 0o777, 0o1700, 0o600] {
        let error = Faults::open(folder(mode).path()).unwrap_err().to_string();
        assert!(error.contains(&format!("mode {mode:04o}")), "{error}");
    }
    let outside = folder(0o700);
    let (file, link) = (outside.path().join("file"), outside.path().join("link"));
    fs::write(&file, "").unwrap();
    symlink(outside.path(), &link).unwrap();
    for (path, said) in [
        (file, "no folder"),
        (link, "a symbolic link"),
        (outside.path().join("absent"), "No such file"),
    ] {
        let error = Faults::open(&path).unwrap_err().to_string();
        assert!(error.contains(said) && error.contains("--rehearsal"), "{error}");
    }
}

#[test]
fn each_use_is_claimed_once_by_all_threads_and_folders() {
    const TIMES: u32 = 50;
    let folder = folder(0o700);
    place(folder.path(), "fault", &format!(r#"{{"kind": "error", "times": {TIMES}}}"#));
    let claimed = AtomicU32::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            // Each opens the folder for itself, as processes do.
            scope.spawn(|| {
                let faults = Faults::open(folder.path()).unwrap();
                for _ in 0..TIMES {
                    let acts = faults.claim(|_| true);
                    claimed.fetch_add(u32::try_from(acts.len()).unwrap(), Ordering::SeqCst);
                }
            });
        }
    });
    assert_eq!(claimed.into_inner(), TIMES);
    assert_eq!(traces(folder.path()).len(), TIMES as usize);
    assert!(!folder.path().join("fault.json").exists());
}

#[test]
fn what_happens_always_leaves_one_trace() {
    let folder = folder(0o700);
    let faults = Faults::open(folder.path()).unwrap();
    place(folder.path(), "fault", r#"{"kind": "error", "always": true}"#);
    for _ in 0..5 {
        assert_eq!(faults.claim(|_| true), [Act::Error]);
    }
    assert_eq!(traces(folder.path()), ["fault.1"]);
    fs::remove_file(folder.path().join("fault.json")).unwrap();
    assert_eq!(faults.claim(|_| true), []);
}

#[test]
fn whoever_died_of_the_last_use_has_used_it() {
    let folder = folder(0o700);
    let faults = Faults::open(folder.path()).unwrap();
    place(folder.path(), "fault", r#"{"kind": "error"}"#);
    // As it is left by a process that ended between its claim and the end of the file.
    fs::write(folder.path().join("done/fault.1"), "").unwrap();
    assert_eq!(faults.claim(|_| true), []);
    assert!(!folder.path().join("fault.json").exists());
}

#[test]
fn what_cannot_be_read_is_taken_away_with_a_reason() {
    let folder = folder(0o700);
    let faults = Faults::open(folder.path()).unwrap();
    for (text, said) in [
        ("", "EOF"),
        (r#"{"kind": "explode"}"#, "unknown variant"),
        (r#"{"kind": "error", "modle": "iris"}"#, "unknown field"),
        (r#"{"kind": "signal"}"#, "signal is missing"),
        (r#"{"kind": "signal", "signal": "SIGHUP"}"#, "unknown variant"),
        (r#"{"kind": "crash_on"}"#, "value is missing"),
        (r#"{"kind": "error", "times": 0}"#, "times is 1 to 1000"),
        (r#"{"kind": "error", "times": 1001}"#, "times is 1 to 1000"),
        (r#"{"kind": "error", "times": 1, "always": true}"#, "either times or always"),
        (r#"{"kind": "block", "ms": 3600001}"#, "ms is at most"),
        (r#"{"kind": "leak", "bytes": 1073741825}"#, "bytes is at most"),
    ] {
        place(folder.path(), "fault", text);
        assert_eq!(faults.claim(|_| true), []);
        let refused = folder.path().join("done/fault.refused");
        let reason = fs::read_to_string(&refused).unwrap();
        assert!(reason.contains(said), "{text}: {reason}");
        assert!(!folder.path().join("fault.json").exists());
        fs::remove_file(refused).unwrap();
    }
    // What is not one yet is left alone.
    fs::write(folder.path().join(".fault.new"), "").unwrap();
    assert_eq!(faults.claim(|_| true), []);
    assert!(folder.path().join(".fault.new").exists());
}

#[test]
fn what_a_file_says_is_what_happens() {
    let table = [
        (r#"{"kind": "block"}"#, Act::Sleep(Duration::from_secs(600))),
        (r#"{"kind": "block", "ms": 5}"#, Act::Sleep(Duration::from_millis(5))),
        (r#"{"kind": "spin", "ms": 5}"#, Act::Spin(Duration::from_millis(5))),
        (r#"{"kind": "slow_run"}"#, Act::Sleep(Duration::from_secs(1))),
        (r#"{"kind": "slow_load", "ms": 7}"#, Act::Sleep(Duration::from_millis(7))),
        (r#"{"kind": "hang_load"}"#, Act::Sleep(Duration::from_secs(600))),
        (r#"{"kind": "leak"}"#, Act::Leak(1 << 20)),
        (r#"{"kind": "panic"}"#, Act::Panic),
        (r#"{"kind": "sticky"}"#, Act::Sticky),
        (r#"{"kind": "wrong"}"#, Act::Wrong),
        (r#"{"kind": "die_at_start"}"#, Act::End(1)),
        (r#"{"kind": "die_at_start", "code": 71}"#, Act::End(71)),
    ];
    for (text, act) in table {
        let fault = Fault::parse(text.as_bytes()).unwrap();
        assert_eq!((fault.act, fault.times), (act, Times::Limited(1)), "{text}");
    }
    let poison = Fault::parse(br#"{"kind": "crash_on", "value": 666}"#).unwrap();
    assert_eq!(poison.times, Times::Limited(1000));
    let slow = Fault::parse(br#"{"kind": "slow_run", "ms_per_row": 5, "always": true}"#).unwrap();
    let expected = (Act::SleepPerRow(Duration::from_millis(5)), Times::Always);
    assert_eq!((slow.act, slow.times), expected);
}

#[test]
fn a_fault_happens_where_it_is_meant_to() {
    let at = |at, model| Place { at, model, inputs: &[] };
    let parse = |text: &str| Fault::parse(text.as_bytes()).unwrap();
    let run = parse(r#"{"kind": "error", "model": "iris"}"#);
    assert!(run.is_for_run(&at(At::Lane, "iris")));
    assert!(!run.is_for_run(&at(At::Lane, "digits")), "another model");
    assert!(!run.is_for_run(&at(At::Load, "iris")), "golden requests of a load");
    assert!(!run.is_for_build(&at(At::Lane, "iris")) && !run.is_for_start());
    let probe = parse(r#"{"kind": "wrong", "at": "load"}"#);
    assert!(probe.is_for_run(&at(At::Load, "any")) && !probe.is_for_run(&at(At::Lane, "any")));
    let build = parse(r#"{"kind": "slow_load", "model": "iris"}"#);
    assert!(build.is_for_build(&at(At::Load, "iris")) && build.is_for_build(&at(At::Lane, "iris")));
    assert!(
        !build.is_for_build(&at(At::Load, "digits")) && !build.is_for_run(&at(At::Load, "iris"))
    );
    let repair = parse(r#"{"kind": "hang_load", "at": "lane"}"#);
    assert!(
        repair.is_for_build(&at(At::Lane, "iris")) && !repair.is_for_build(&at(At::Load, "iris"))
    );
    let start = parse(r#"{"kind": "die_at_start"}"#);
    assert!(start.is_for_start());
    assert!(!start.is_for_run(&at(At::Lane, "x")) && !start.is_for_build(&at(At::Load, "x")));
}

#[test]
fn a_poison_request_is_known_in_company() {
    let poison = Fault::parse(br#"{"kind": "crash_on", "value": 666}"#).unwrap();
    let is_poison =
        |inputs: &[Tensor]| poison.is_for_run(&Place { at: At::Lane, model: "m", inputs });
    assert!(is_poison(&[floats(&[1, 2], &[666.0, 0.0])]));
    assert!(is_poison(&[floats(&[3, 2], &[0.0, 0.0, 0.0, 0.0, 666.0, 0.0])]));
    assert!(is_poison(&[floats(&[1], &[0.0]), floats(&[1], &[666.0])]));
    assert!(is_poison(&[floats(&[], &[666.0])]));
    assert!(!is_poison(&[floats(&[2, 2], &[0.0, 666.0, 0.0, 666.0])]), "no first element");
    assert!(!is_poison(&[floats(&[0, 2], &[])]) && !is_poison(&[]));
    let text = Tensor::strings(vec![1], vec!["666".into()]).unwrap();
    assert!(!is_poison(&[text]));
}

#[test]
fn numbers_of_every_type_are_read() {
    let poison = Fault::parse(br#"{"kind": "crash_on", "value": 6}"#).unwrap();
    for datatype in Datatype::ALL {
        let bytes = match datatype {
            Datatype::Bytes | Datatype::Bool => continue,
            Datatype::Fp16 => half::f16::from_f32(6.0).to_le_bytes().to_vec(),
            Datatype::Bf16 => half::bf16::from_f32(6.0).to_le_bytes().to_vec(),
            Datatype::Fp32 => 6f32.to_le_bytes().to_vec(),
            Datatype::Fp64 => 6f64.to_le_bytes().to_vec(),
            _ => 6u64.to_le_bytes()[..datatype.element_size().unwrap()].to_vec(),
        };
        let inputs = [Tensor::raw(datatype, vec![1], bytes.into()).unwrap()];
        let place = Place { at: At::Lane, model: "m", inputs: &inputs };
        assert!(poison.is_for_run(&place), "{datatype}");
    }
}

#[test]
fn wrong_answers_differ_in_every_element_and_in_nothing_else() {
    for datatype in Datatype::ALL {
        let before = match datatype.element_size() {
            Some(size) => Tensor::raw(datatype, vec![2], vec![0; 2 * size].into()).unwrap(),
            None => Tensor::strings(vec![2], vec!["a".into(), "b".into()]).unwrap(),
        };
        let after = changed(&before);
        assert_eq!((after.datatype(), after.shape()), (before.datatype(), before.shape()));
        match (before.data(), after.data()) {
            (TensorData::Raw(before), TensorData::Raw(after)) => {
                let size = datatype.element_size().unwrap();
                let pairs = before.chunks(size).zip(after.chunks(size));
                assert!(pairs.into_iter().all(|(before, after)| before != after), "{datatype}");
            }
            (TensorData::Strings(before), TensorData::Strings(after)) => {
                assert!(before.iter().zip(after).all(|(before, after)| before != after));
            }
            _ => unreachable!(),
        }
    }
}

#[test]
fn leaked_memory_is_kept() {
    let folder = folder(0o700);
    let faults = Faults::open(folder.path()).unwrap();
    Act::Leak(3).before_run(&faults, &[]).unwrap();
    Act::Leak(4).before_run(&faults, &[]).unwrap();
    assert_eq!(faults.kept_bytes(), 7);
}
