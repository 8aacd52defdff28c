//! Bytes inside of a string: where plain text ends, and characters that two pieces share.

/// How many bytes come before the first quote, backslash or control character. Eight at a time, by the classic test for a zero
/// byte in a word (Anderson, Bit Twiddling Hacks): a borrow can raise false marks only above a true one, and the lowest counts.
pub(super) fn plain_length(bytes: &[u8]) -> usize {
    const LOW: u64 = u64::from_ne_bytes([0x01; 8]);
    const HIGH: u64 = u64::from_ne_bytes([0x80; 8]);
    let (words, tail) = bytes.as_chunks::<8>();
    let mut length = 0;
    for &word in words {
        let word = u64::from_le_bytes(word);
        let quote = word ^ LOW.wrapping_mul(b'"'.into());
        let backslash = word ^ LOW.wrapping_mul(b'\\'.into());
        let marks = (quote.wrapping_sub(LOW) & !quote)
            | (backslash.wrapping_sub(LOW) & !backslash)
            | (word.wrapping_sub(LOW.wrapping_mul(b' '.into())) & !word);
        let marks = marks & HIGH;
        if marks != 0 {
            return length + marks.trailing_zeros() as usize / 8;
        }
        length += 8;
    }
    length + tail.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20)).unwrap_or(tail.len())
}

/// Up to three bytes of an unfinished UTF-8 character.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SplitChar {
    bytes: [u8; 4],
    length: usize,
}

impl SplitChar {
    pub(super) fn from_bytes(bytes: &[u8]) -> SplitChar {
        bytes.iter().fold(SplitChar::default(), |split, &byte| split.followed_by(byte))
    }

    pub(super) fn followed_by(mut self, byte: u8) -> SplitChar {
        if let Some(free) = self.bytes.get_mut(self.length) {
            *free = byte;
            self.length += 1;
        }
        self
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.length == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn plain_text_ends_at_quotes_backslashes_and_controls_only() {
        for before in 0..20 {
            for byte in 0..=u8::MAX {
                let text = [vec![b'x'; before], vec![byte], b"\"x\0".to_vec()].concat();
                let special = byte < 0x20 || byte == b'"' || byte == b'\\';
                assert_eq!(plain_length(&text), before + usize::from(!special), "{byte} after {before}");
                // A mark must not hide behind a neighbour's borrow.
                let text =
                    [vec![0x80; before], vec![byte, b'!', b'#', b'[', b']', 0x7F, 0xFF, b' ', b'!', b'"']].concat();
                assert_eq!(plain_length(&text), if special { before } else { before + 9 }, "{byte} after {before}");
            }
        }
        assert_eq!(plain_length(b""), 0);
    }
}
