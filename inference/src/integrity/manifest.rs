//! `SHA256SUMS`: which files a version has, and their digests.
//!
//! The format is what `sha256sum -c` reads: a digest, a space, a space or `*`, a name, one file per line. A
//! line that begins with a backslash has `\\`, `\n` and `\r` written as escapes in its name. Comment lines
//! (`#`) and empty lines are passed over, as `sha256sum` does. Where `sha256sum` is lenient in a way that
//! hides a mistake (a line it cannot read is only a warning there), this is strict: every line counts.

use super::digest::Digest;
use crate::clip::clipped;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Name of the manifest beside a model.
pub const MANIFEST_FILE: &str = "SHA256SUMS";

/// The largest manifest that is read, in bytes: about 10,000 files.
pub const MANIFEST_BYTES_MAX: u64 = 1 << 20;

/// File names, relative to the version folder, and their digests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    files: BTreeMap<String, Digest>,
}

/// A manifest that cannot be trusted to mean one thing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// More than [`MANIFEST_BYTES_MAX`].
    #[error("{found} bytes, at most {MANIFEST_BYTES_MAX} are read")]
    TooLarge {
        /// Bytes found.
        found: u64,
    },
    /// Windows line ends, which `sha256sum` elsewhere takes as part of the name.
    #[error("line {line} ends in a carriage return; write it with Unix line ends")]
    CarriageReturn {
        /// Counted from 1.
        line: usize,
    },
    /// Not digest, two separators, name.
    #[error(
        "line {line} is not '<64 hexadecimal digits>  <file name>', as sha256sum writes it: {problem}"
    )]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A name that is not a plain path beneath the version folder.
    #[error(
        "line {line} names {name:?}, which {problem}; names are plain relative paths beneath the version folder"
    )]
    Name {
        /// Counted from 1.
        line: usize,
        /// As it was written, shortened.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A file appears twice.
    #[error("line {line} names {name:?} a second time; a file is listed once")]
    Duplicate {
        /// Counted from 1.
        line: usize,
        /// The name that repeats, shortened.
        name: String,
    },
}

impl Manifest {
    /// Reads the text of a `SHA256SUMS` file.
    ///
    /// # Errors
    /// [`ManifestError`] with the number of the first line that is wrong.
    pub fn parse(text: &[u8]) -> Result<Self, ManifestError> {
        let bytes = text.len() as u64;
        if bytes > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLarge { found: bytes });
        }
        let mut files = BTreeMap::new();
        for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
            let number = index + 1;
            if line.ends_with(b"\r") {
                return Err(ManifestError::CarriageReturn { line: number });
            }
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            let (digest, name) = parse_line(line)
                .map_err(|problem| ManifestError::Line { line: number, problem })?;
            if let Some(problem) = name_problem(&name) {
                return Err(ManifestError::Name { line: number, name: clipped(&name), problem });
            }
            if name == MANIFEST_FILE {
                let problem = "is the manifest itself";
                return Err(ManifestError::Name { line: number, name, problem });
            }
            if files.contains_key(&name) {
                return Err(ManifestError::Duplicate { line: number, name: clipped(&name) });
            }
            files.insert(name, digest);
        }
        Ok(Manifest { files })
    }

    /// Names with their digests, for a manifest about to be written.
    ///
    /// # Errors
    /// [`ManifestError::Name`] with the position of the name among `files`, counted from 1.
    pub fn new(files: BTreeMap<String, Digest>) -> Result<Self, ManifestError> {
        for (index, name) in files.keys().enumerate() {
            if let Some(problem) = name_problem(name) {
                let name = clipped(name);
                return Err(ManifestError::Name { line: index + 1, name, problem });
            }
        }
        Ok(Manifest { files })
    }

    /// The digest of `name`, if it is listed.
    pub fn get(&self, name: &str) -> Option<Digest> {
        self.files.get(name).copied()
    }

    /// Names and digests, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Digest)> {
        self.files.iter().map(|(name, digest)| (name.as_str(), *digest))
    }

    /// How many files are listed.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether nothing is listed.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// The text of the file, sorted by name, byte for byte what `sha256sum` prints.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for (name, digest) in &self.files {
            if name.contains(['\\', '\n', '\r']) {
                let name = name.replace('\\', "\\\\").replace('\n', "\\n").replace('\r', "\\r");
                let _ = writeln!(text, "\\{digest}  {name}");
            } else {
                let _ = writeln!(text, "{digest}  {name}");
            }
        }
        text
    }
}

fn parse_line(line: &[u8]) -> Result<(Digest, String), &'static str> {
    let (escaped, line) = match line.strip_prefix(b"\\") {
        Some(rest) => (true, rest),
        None => (false, line),
    };
    if line.starts_with(b"SHA256 (") {
        return Err("the tagged form (sha256sum --tag) is not read");
    }
    let Some((digest, rest)) = line.split_at_checked(64) else {
        return Err("it is too short");
    };
    let digest = std::str::from_utf8(digest)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or("it does not begin with a digest")?;
    let name = match rest {
        [b' ', b' ' | b'*', name @ ..] => name,
        _ => return Err("after the digest come two spaces, or a space and '*'"),
    };
    let name = std::str::from_utf8(name).map_err(|_| "the name is not UTF-8")?;
    let name = if escaped { unescaped(name)? } else { name.to_owned() };
    Ok((digest, name))
}

fn unescaped(name: &str) -> Result<String, &'static str> {
    let mut plain = String::with_capacity(name.len());
    let mut letters = name.chars();
    while let Some(letter) = letters.next() {
        let meant = match letter {
            '\\' => match letters.next() {
                Some('\\') => '\\',
                Some('n') => '\n',
                Some('r') => '\r',
                _ => return Err(r"an escaped name has only \\, \n and \r"),
            },
            other => other,
        };
        plain.push(meant);
    }
    Ok(plain)
}

/// What keeps `name` from being a plain relative path beneath a folder; `None` when nothing does.
///
/// One file has one such name, so comparing names compares files (symbolic links apart).
pub(crate) fn name_problem(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        return Some("is empty");
    }
    if name.len() > 4095 {
        return Some("is longer than 4095 bytes");
    }
    if name.starts_with('/') {
        return Some("is an absolute path");
    }
    if name.contains('\0') {
        return Some("holds a NUL character");
    }
    name.split('/').find_map(|component| match component {
        "" => Some("has an empty path component"),
        "." => Some("has a '.' component"),
        ".." => Some("has a '..' component"),
        long if long.len() > 255 => Some("has a path component longer than 255 bytes"),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn parse(text: &str) -> Result<Manifest, ManifestError> {
        Manifest::parse(text.as_bytes())
    }

    #[test]
    fn reads_what_sha256sum_reads() {
        let text = format!(
            "# a comment\n{A}  model.onnx\n\n{A} *data/w.bin\n\\{A}  a\\\\b\\nc\n{}  no end of line",
            A.to_uppercase()
        );
        let manifest = parse(&text).unwrap();
        let names: Vec<&str> = manifest.iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["a\\b\nc", "data/w.bin", "model.onnx", "no end of line"]);
        assert_eq!(manifest.get("model.onnx"), Some(Digest::of(b"abc")));
        assert_eq!(manifest.len(), 4);
        assert!(parse("").unwrap().is_empty());
    }

    #[test]
    fn refuses_with_the_line() {
        let line = |text: &str| format!("{A}  ok\n{text}\n");
        let table = [
            (line(&format!("{A}  a\r")), "line 2 ends in a carriage return"),
            (line(&A[1..]), "line 2 is not '<64 hexadecimal digits>  <file name>'"),
            (line(&format!("x{}  a", &A[1..])), "it does not begin with a digest"),
            (line(&format!("{A} a")), "two spaces"),
            (line(&format!(" {A}  a")), "it does not begin with a digest"),
            (line(&format!("SHA256 (a) = {A}")), "the tagged form"),
            (line(&format!("{A}  ")), "line 2 names \"\", which is empty"),
            (line(&format!("{A}  /etc/passwd")), "is an absolute path"),
            (line(&format!("{A}  ../x")), "has a '..' component"),
            (line(&format!("{A}  a/../x")), "has a '..' component"),
            (line(&format!("{A}  ./x")), "has a '.' component"),
            (line(&format!("{A}  a//b")), "has an empty path component"),
            (line(&format!("{A}  a/")), "has an empty path component"),
            (line(&format!("{A}  a\0b")), "holds a NUL"),
            (line(&format!("{A}  SHA256SUMS")), "is the manifest itself"),
            (line(&format!("{A} *ok")), "line 2 names \"ok\" a second time"),
            (line(&format!("\\{A}  a\\tb")), "an escaped name has only"),
            ("\n".repeat((1 << 20) + 1), "at most 1048576 are read"),
        ];
        for (text, expected) in table {
            let message = parse(&text).unwrap_err().to_string();
            assert!(message.contains(expected), "{message:?} should hold {expected:?}");
        }
        let not_utf8 = [A.as_bytes(), b"  \xff\n"].concat();
        assert!(Manifest::parse(&not_utf8).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = Manifest::parse(&bytes);
        }

        #[test]
        fn what_is_written_reads_back(
            names in proptest::collection::btree_set("[^/\0]{1,20}(/[^/\0]{1,20}){0,2}", 0..8)
        ) {
            let files: BTreeMap<String, Digest> = names
                .into_iter()
                .filter(|name| name_problem(name).is_none())
                .map(|name| (name.clone(), Digest::of(name.as_bytes())))
                .collect();
            let manifest = Manifest::new(files).unwrap();
            prop_assert_eq!(Manifest::parse(manifest.to_text().as_bytes()), Ok(manifest));
        }
    }
}
