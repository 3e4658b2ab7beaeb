//! Classes of criticality: who waits longest, and who goes first.

use std::fmt;
use std::str::FromStr;

/// How much a request matters, by its own account (`x-request-class`, or the protocol's `priority`).
///
/// The names are those of Google's SRE book (Handling Overload), with `best-effort` for what nobody waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Goes first, and is turned away last.
    Critical,
    /// Whatever says nothing.
    #[default]
    Default,
    /// May be turned away for a while: batch work that is repeated.
    Sheddable,
    /// Uses what is left.
    BestEffort,
}

impl Class {
    /// Every class, the most critical first.
    pub const ALL: [Class; 4] =
        [Class::Critical, Class::Default, Class::Sheddable, Class::BestEffort];

    /// The word in the header, and the label value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Class::Critical => "critical",
            Class::Default => "default",
            Class::Sheddable => "sheddable",
            Class::BestEffort => "best-effort",
        }
    }

    /// What the protocol's `priority` parameter means: 1 is the highest, 0 says nothing.
    pub const fn of_priority(priority: u64) -> Self {
        match priority {
            1 => Class::Critical,
            0 | 2 => Class::Default,
            3 => Class::Sheddable,
            _ => Class::BestEffort,
        }
    }

    /// The part of the longest wait that it may find and still be let in, in hundredths.
    pub(super) const fn patience_percent(self) -> u64 {
        match self {
            Class::Critical => 100,
            Class::Default => 80,
            Class::Sheddable => 40,
            Class::BestEffort => 10,
        }
    }

    /// Place in tables by class.
    pub(crate) const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that is no class.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("none of critical, default, sheddable, best-effort")]
pub struct UnknownClass;

impl FromStr for Class {
    type Err = UnknownClass;

    fn from_str(word: &str) -> Result<Self, UnknownClass> {
        Class::ALL
            .into_iter()
            .find(|class| class.as_str().eq_ignore_ascii_case(word))
            .ok_or(UnknownClass)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_priorities() {
        for (index, class) in Class::ALL.into_iter().enumerate() {
            assert_eq!(class.index(), index);
            assert_eq!(class.as_str().parse(), Ok(class));
            assert_eq!(class.as_str().to_uppercase().parse(), Ok(class));
        }
        assert_eq!("urgent".parse::<Class>(), Err(UnknownClass));
        let classes: Vec<Class> = [0, 1, 2, 3, 4, u64::MAX].map(Class::of_priority).to_vec();
        use Class::{BestEffort, Critical, Default, Sheddable};
        assert_eq!(classes, [Default, Critical, Default, Sheddable, BestEffort, BestEffort]);
        assert!(Class::ALL.is_sorted_by_key(|class| 100 - class.patience_percent()));
    }
}
