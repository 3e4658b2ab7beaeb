//! The configuration as `balm check` prints it.

use std::fmt::Write;

use super::keys;
use super::problem::Origin;

/// A key with the value that is used, and who set it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The key.
    pub key: &'static str,
    /// The value, as it would be written in a variable.
    pub value: String,
    /// Who set it.
    pub origin: Origin,
}

/// One line per key, in columns.
pub(super) fn table(settings: &[Setting]) -> String {
    let rows: Vec<[String; 4]> = settings
        .iter()
        .map(|setting| {
            let variable = keys::find(setting.key).map(keys::Key::variable).unwrap_or_default();
            [setting.key.to_owned(), setting.value.clone(), variable, setting.origin.to_string()]
        })
        .collect();
    let header = ["key", "value", "variable", "set by"].map(str::to_owned);
    let width = |column: usize| {
        let cells = rows.iter().chain([&header]).map(|row| row[column].chars().count());
        cells.max().unwrap_or_default()
    };
    let (keys, values, variables) = (width(0), width(1), width(2));
    let mut text = String::new();
    for [key, value, variable, origin] in [&header].into_iter().chain(&rows) {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{key:keys$}  {value:values$}  {variable:variables$}  {origin}");
    }
    text
}
