use super::*;
use std::fs;
use std::os::unix::fs::symlink;

fn touch(root: &Path, files: &[&str]) {
    for file in files {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }
}

fn scan(root: &Path) -> Scan {
    Repository::open(root).unwrap().scan().unwrap()
}

fn names(scan: &Scan) -> Vec<&str> {
    scan.models.iter().map(|model| model.name.as_str()).collect()
}

#[test]
fn declares_what_has_a_version_or_settings() {
    let temporary = tempfile::tempdir().unwrap();
    let root = temporary.path();
    touch(
        root,
        &[
            "iris/2/model.onnx",
            "iris/10/model.onnx",
            "iris/1/model.onnx",
            "iris/01/model.onnx",
            "iris/0/model.onnx",
            "iris/99999999999999999999999/model.onnx",
            "iris/3",
            "empty/model.toml",
            "docs/readme.md",
            ".git/1/model.onnx",
            "README.md",
            "bad name/1/model.onnx",
            "_x/1/model.onnx",
        ],
    );
    let scan = scan(root);
    assert_eq!(names(&scan), ["empty", "iris"]);
    assert_eq!(scan.models[1].versions, [1, 2, 10]);
    assert_eq!(scan.models[1].problem(), None);
    assert_eq!(scan.models[1].warnings.len(), 4, "{:?}", scan.models[1].warnings);
    let problem = scan.models[0].problem().unwrap();
    assert_eq!(problem, "empty: has no version; put the model at empty/1/model.onnx");
    assert_eq!(scan.warnings.len(), 3, "{:?}", scan.warnings);
    assert!(scan.warnings.iter().any(|text| text.starts_with("docs: is no model")));
    assert!(scan.warnings.iter().any(|text| text.starts_with("\"bad name\": is not served")));
}

#[test]
fn an_empty_repository_declares_nothing() {
    let temporary = tempfile::tempdir().unwrap();
    assert!(scan(temporary.path()).models.is_empty());
    let absent = Repository::open(temporary.path().join("absent")).unwrap_err();
    assert!(absent.to_string().contains("cannot be opened"), "{absent}");
}

#[test]
fn kubernetes_links_are_models_and_links_out_are_declared_broken() {
    let temporary = tempfile::tempdir().unwrap();
    let root = temporary.path().join("models");
    touch(&root, &["..2026_01/iris/1/model.onnx", "digits/..2026/1/model.onnx"]);
    touch(temporary.path(), &["elsewhere/1/model.onnx"]);
    symlink("..2026_01", root.join("..data")).unwrap();
    symlink("..data/iris", root.join("iris")).unwrap();
    symlink("..2026", root.join("digits/..data")).unwrap();
    symlink("..data/1", root.join("digits/1")).unwrap();
    symlink("../elsewhere", root.join("outside")).unwrap();
    symlink(temporary.path().join("elsewhere"), root.join("absolute")).unwrap();
    symlink("nowhere", root.join("dangling")).unwrap();
    let scan = scan(&root);
    assert_eq!(names(&scan), ["absolute", "dangling", "digits", "iris", "outside"]);
    for (index, expected) in
        [(0, "leads out"), (1, "is missing"), (4, "leads out of the model repository")]
    {
        let problem = scan.models[index].problem().unwrap();
        assert!(problem.contains(expected), "{problem}");
    }
    assert_eq!(scan.models[2].versions, [1]);
    assert_eq!(scan.models[3].versions, [1]);
}

#[test]
fn bad_settings_stay_with_their_model() {
    let temporary = tempfile::tempdir().unwrap();
    let root = temporary.path();
    touch(root, &["a/1/model.onnx", "b/1/model.onnx", "c/1/model.onnx", "d/1/model.onnx"]);
    fs::write(root.join("a/model.toml"), "lanes = 0").unwrap();
    fs::write(root.join("b/model.toml"), "lanes = 3").unwrap();
    fs::create_dir(root.join("c/model.toml")).unwrap();
    fs::write(root.join("d/model.toml"), b"\xff").unwrap();
    let scan = scan(root);
    let problems: Vec<Option<String>> = scan.models.iter().map(ModelEntry::problem).collect();
    let expected = "a/model.toml: lanes must be an integer from 1 to 64, found 0";
    assert_eq!(problems[0].as_deref(), Some(expected));
    assert_eq!(problems[1], None);
    assert_eq!(scan.models[1].settings.as_ref().unwrap().lanes, Some(3));
    let expected = "c/model.toml: is a directory, a regular file is needed";
    assert_eq!(problems[2].as_deref(), Some(expected));
    assert_eq!(problems[3].as_deref(), Some("d/model.toml: is not UTF-8"));
}

#[test]
fn one_model_is_found_by_name() {
    let temporary = tempfile::tempdir().unwrap();
    touch(temporary.path(), &["iris/1/model.onnx"]);
    let repository = Repository::open(temporary.path()).unwrap();
    assert_eq!(repository.find("iris").unwrap().versions, [1]);
    for absent in ["digits", "../iris", "", ".", "iris/1"] {
        assert!(repository.find(absent).is_none(), "{absent}");
    }
    assert_eq!(repository.version_dir("iris", 1), Path::new("iris/1"));
}

#[test]
fn names_and_versions() {
    let long = "a".repeat(128);
    for good in ["a", "0", "A.b_c-d", long.as_str()] {
        assert!(is_model_name(good), "{good}");
    }
    let longer = "a".repeat(129);
    for bad in ["", ".a", "_a", "-a", "a/b", "a b", "é", longer.as_str()] {
        assert!(!is_model_name(bad), "{bad}");
    }
    assert_eq!(parse_version("18446744073709551615"), Some(u64::MAX));
    for bad in ["", "0", "01", "+1", "-1", "1.0", "18446744073709551616"] {
        assert_eq!(parse_version(bad), None, "{bad}");
    }
}
