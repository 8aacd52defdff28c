//! One sequence on its way through the engine.

use super::FinishReason;

/// The steps in which a sequence decodes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Decoding {
    /// The number of the first one.
    pub(super) since: u64,
    /// The number of the one after the last.
    pub(super) until: u64,
}

#[derive(Clone, Debug)]
pub(super) struct Sequence {
    pub(super) id: u64,
    pub(super) arrives_ns: u64,
    /// Tokens to prefill: the prompt, after a preemption also what was generated.
    pub(super) target: u32,
    pub(super) prefilled: u32,
    /// Hashes of the prompt's blocks.
    pub(super) blocks: Vec<u64>,
    /// Tokens generated before it was last admitted.
    pub(super) before: u32,
    /// Tokens after which it ends.
    pub(super) last: u32,
    pub(super) reason: FinishReason,
    pub(super) started: bool,
    /// Prompt tokens that the current step prefills.
    pub(super) chunk: u32,
    /// Since its prompt is done.
    pub(super) decoding: Option<Decoding>,
}

impl Sequence {
    /// Its part in step number `step`: a piece of the prompt within the budget, and a token if the prompt is done by then.
    pub(super) fn plan(&mut self, step: u64, budget: &mut u32) {
        self.chunk = self.target.saturating_sub(self.prefilled).min(*budget);
        *budget = budget.saturating_sub(self.chunk);
        let left = self.last.saturating_sub(self.before);
        if self.prefilled.saturating_add(self.chunk) >= self.target && left > 0 {
            self.decoding = Some(Decoding { since: step, until: step.saturating_add(u64::from(left)) });
        }
    }

    /// Tokens since it was last admitted, where so many steps have ended.
    fn decoded(&self, steps: u64) -> u32 {
        self.decoding.map_or(0, |d| u32::try_from(steps.saturating_sub(d.since)).unwrap_or(u32::MAX))
    }

    /// Tokens, where so many steps have ended.
    pub(super) fn generated(&self, steps: u64) -> u32 {
        self.before.saturating_add(self.decoded(steps))
    }

    /// KV tokens it holds before step number `step` begins.
    pub(super) fn held(&self, step: u64) -> u32 {
        self.target.saturating_add(self.decoded(step))
    }

    /// Whether it is at its end, where so many steps have ended.
    pub(super) fn is_done(&self, steps: u64) -> bool {
        match self.decoding {
            Some(decoding) => decoding.until <= steps,
            None => self.prefilled >= self.target && self.before >= self.last,
        }
    }

    /// Preempted before step number `step`.
    pub(super) fn lose_kv(&mut self, step: u64) {
        (self.target, self.before) = (self.held(step), self.generated(step));
        self.prefilled = 0;
        self.chunk = 0;
        self.decoding = None;
    }
}
