//! Prompt text to hashed slots and surface features; bounded work whatever the prompt's size.

/// A bounded view of a prompt's text: its first [`HEAD_CHARS`] and last [`TAIL_CHARS`] characters, and counts over all of it.
#[derive(Clone, Debug, Default)]
pub struct TextWindow {
    head: String,
    chars: u64,
}

/// Characters kept from the start of the text.
pub const HEAD_CHARS: usize = 4_000;
/// Characters kept from the end of the text.
pub const TAIL_CHARS: usize = 2_000;

impl TextWindow {
    /// Appends a piece of text; pieces may be cut anywhere between characters.
    pub fn push_str(&mut self, text: &str) {
        self.head.push_str(text);
        self.chars += text.chars().count() as u64;
    }

    /// Characters seen so far, kept or not.
    pub fn chars(&self) -> u64 {
        self.chars
    }

    /// Estimated tokens of all the text seen so far.
    pub fn estimated_tokens(&self) -> u64 {
        self.chars / 4
    }
}
