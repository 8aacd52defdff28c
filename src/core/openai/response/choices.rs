//! Which choices of a stream have begun, and which have ended.

/// Sets of choices, by their index.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Choices {
    begun: u128,
    finished: u128,
    /// Whether a choice has begun that has no bit: nobody knows its end.
    has_unknown: bool,
}

impl Choices {
    /// A choice has gained something, or has ended.
    pub(super) fn see(&mut self, index: u64, is_finished: bool) {
        let bit = u32::try_from(index).ok().and_then(|index| 1_u128.checked_shl(index));
        match bit {
            Some(bit) => {
                self.begun |= bit;
                self.finished |= if is_finished { bit } else { 0 };
            }
            None => self.has_unknown = true,
        }
    }

    /// Adds those of the next event.
    pub(super) fn add(&mut self, more: &Choices) {
        self.begun |= more.begun;
        self.finished |= more.finished;
        self.has_unknown |= more.has_unknown;
    }

    /// Whether there are some, and all have ended.
    pub(super) fn are_finished(&self) -> bool {
        self.begun != 0 && self.begun == self.finished && !self.has_unknown
    }
}
