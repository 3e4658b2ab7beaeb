//! What a mistyped word was probably meant to be.

/// The one of `known` that `word` is most likely meant to be, if any is near.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let allowed =
        |candidate: &str| (word.chars().count().max(candidate.chars().count()) / 3).clamp(1, 6);
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(edits, candidate)| *edits <= allowed(candidate))
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate)
}

/// `; did you mean …?`, or nothing.
pub(crate) fn hint<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(word, known).map_or_else(String::new, |meant| format!("; did you mean {meant}?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_and_far() {
        let known = ["goodput_ratio", "goodput_per_s", "rate"];
        assert_eq!(nearest("godput_ratio", known), Some("goodput_ratio"));
        assert_eq!(nearest("goodput_pre_s", known), Some("goodput_per_s"));
        assert_eq!(nearest("raet", known), Some("rate"));
        assert_eq!(nearest("connections", known), None);
        assert_eq!(hint("rat", known), "; did you mean rate?");
        assert_eq!(hint("xyz", known), "");
    }
}
