//! What was written, before anybody asks what it means: the three sources, and for each key the weightiest
//! value with its origin.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{self, CONFIG_VARIABLE, KEYS, ORT_VARIABLE, PREFIX};
use super::problem::{Origin, Problem};

/// Everything that may set a key, in rising weight.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The configuration file.
    pub file: Option<FileText>,
    /// The environment. Variables that are not ours are skipped.
    pub environment: Vec<Variable>,
    /// The command line.
    pub flags: Vec<Flag>,
}

/// A configuration file that has been read.
#[derive(Clone, Debug)]
pub struct FileText {
    /// Its path, as it should appear in messages.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
}

/// A variable of the environment.
#[derive(Clone, Debug)]
pub struct Variable {
    /// Name.
    pub name: String,
    /// Value, which need not be UTF-8.
    pub value: OsString,
}

/// A flag or argument that sets a key.
#[derive(Clone, Debug)]
pub struct Flag {
    /// The key, one of [`KEYS`].
    pub key: &'static str,
    /// How it is written on the command line, for messages.
    pub flag: &'static str,
    /// Value.
    pub value: String,
}

/// A value as it was written.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Raw {
    /// Text of a variable or flag, whose kind is the key's.
    Untyped(String),
    /// A TOML string.
    Text(String),
    /// A TOML integer; too large for 64 bits is still an integer.
    Integer(Option<i64>),
    /// A TOML boolean.
    Boolean(bool),
    /// A TOML array.
    List(Vec<Raw>),
    /// A TOML value of a kind that no key has.
    Other(&'static str),
}

/// A value and what is needed to speak of it.
#[derive(Clone, Debug)]
pub(super) struct Given {
    pub(super) raw: Raw,
    /// As it was written, for messages.
    pub(super) written: String,
    pub(super) origin: Origin,
}

/// For each key that was set, the weightiest value.
#[derive(Debug, Default)]
pub(super) struct RawConfig {
    pub(super) given: BTreeMap<&'static str, Given>,
    /// Unknown keys, bad syntax: what can be said without knowing what the keys mean.
    pub(super) problems: Vec<Problem>,
}

// ===== impl RawConfig =====

impl RawConfig {
    pub(super) fn layer(sources: &Sources) -> RawConfig {
        let mut raw = RawConfig::default();
        if let Some(file) = &sources.file {
            raw.add_file(file);
        }
        raw.add_environment(&sources.environment);
        for Flag { key, flag, value } in &sources.flags {
            let given = Given {
                raw: Raw::Untyped(value.clone()),
                written: format!("{value:?}"),
                origin: Origin::Flag(flag),
            };
            raw.given.insert(key, given);
        }
        raw
    }

    fn add_file(&mut self, file: &FileText) {
        let origin = |offset: usize| Origin::File {
            path: file.path.clone(),
            line: 1 + file.text.as_bytes()[..offset.min(file.text.len())]
                .iter()
                .filter(|&&byte| byte == b'\n')
                .count(),
        };
        let (table, errors) = DeTable::parse_recoverable(&file.text);
        for error in &errors {
            self.problems.push(Problem {
                key: "syntax".to_owned(),
                value: None,
                origin: origin(error.span().map_or(0, |span| span.start)),
                message: error.message().to_owned(),
            });
        }
        for (section, value) in table.get_ref() {
            let section_name = section.get_ref();
            let DeValue::Table(entries) = value.get_ref() else {
                self.unknown(section_name, origin(section.span().start));
                continue;
            };
            if entries.is_empty() && !KEYS.iter().any(|key| in_section(key.name, section_name)) {
                self.unknown(section_name, origin(section.span().start));
            }
            for (name, value) in entries {
                let origin = origin(name.span().start);
                match keys::find(&format!("{section_name}.{}", name.get_ref())) {
                    Some(key) => {
                        let given = Given {
                            raw: raw(value),
                            written: file.text.get(value.span()).unwrap_or_default().to_owned(),
                            origin,
                        };
                        self.given.insert(key.name, given);
                    }
                    None => self.unknown(&format!("{section_name}.{}", name.get_ref()), origin),
                }
            }
        }
    }

    fn unknown(&mut self, name: &str, origin: Origin) {
        let sections = KEYS.iter().filter_map(|key| key.name.split('.').next());
        let names = KEYS.iter().map(|key| key.name);
        let message = match keys::nearest(name, names.chain(sections)) {
            Some(meant) => format!("there is no such key; did you mean {meant}?"),
            None => "there is no such key".to_owned(),
        };
        self.problems.push(Problem { key: name.to_owned(), value: None, origin, message });
    }

    fn add_environment(&mut self, environment: &[Variable]) {
        // Our own variable outweighs the one that is only known for the same thing.
        let foreign = environment.iter().filter(|variable| variable.name == ORT_VARIABLE);
        let ours = environment.iter().filter(|variable| variable.name.starts_with(PREFIX));
        for Variable { name, value } in foreign.chain(ours) {
            let origin = Origin::Environment(name.clone());
            let key = match name.as_str() {
                CONFIG_VARIABLE => continue,
                // Set to nothing is how a shell line unsets it.
                ORT_VARIABLE if value.is_empty() => continue,
                ORT_VARIABLE => keys::find("onnxruntime.library"),
                name => keys::by_variable(name),
            };
            let Some(key) = key else {
                if !keys::is_kubernetes_service(name, &value.to_string_lossy()) {
                    self.unknown_variable(name, origin);
                }
                continue;
            };
            match value.to_str() {
                Some(text) => {
                    let given = Given {
                        raw: Raw::Untyped(text.to_owned()),
                        written: format!("{text:?}"),
                        origin,
                    };
                    self.given.insert(key.name, given);
                }
                None => self.problems.push(Problem {
                    key: key.name.to_owned(),
                    value: Some(format!("{value:?}")),
                    origin,
                    message: "UTF-8".to_owned(),
                }),
            }
        }
    }

    fn unknown_variable(&mut self, name: &str, origin: Origin) {
        let variables: Vec<String> = KEYS.iter().map(keys::Key::variable).collect();
        // The double underscore that other programs put between section and key.
        let single = name.replace("__", "_");
        let meant = keys::nearest(&single, variables.iter().map(String::as_str));
        let message = match meant {
            Some(meant) => format!("balm knows no such variable; did you mean {meant}?"),
            None => "balm knows no such variable; `balm check` lists those it knows".to_owned(),
        };
        self.problems.push(Problem { key: name.to_owned(), value: None, origin, message });
    }
}

fn in_section(key: &str, section: &str) -> bool {
    key.split('.').next() == Some(section)
}

fn raw(value: &Spanned<DeValue<'_>>) -> Raw {
    match value.get_ref() {
        DeValue::String(text) => Raw::Text(text.to_string()),
        DeValue::Integer(integer) => {
            Raw::Integer(i64::from_str_radix(integer.as_str(), integer.radix()).ok())
        }
        DeValue::Boolean(boolean) => Raw::Boolean(*boolean),
        DeValue::Array(items) => Raw::List(items.iter().map(raw).collect()),
        DeValue::Float(_) => Raw::Other("a float"),
        DeValue::Datetime(_) => Raw::Other("a date"),
        DeValue::Table(_) => Raw::Other("a table"),
    }
}
