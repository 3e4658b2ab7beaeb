//! Texts of others in messages of ours: short enough to be read.

/// Characters of a name or text that are shown.
const SHOWN: usize = 160;

/// `text`, or its beginning and an ellipsis where it is long.
pub fn clipped(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_between_characters() {
        let fits = "é".repeat(SHOWN);
        assert_eq!(clipped(&fits), fits);
        assert_eq!(clipped(&format!("{fits}é")), format!("{fits}…"));
    }
}
