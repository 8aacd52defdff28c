//! The KV cache in blocks, as vLLM's allocator has it: a sequence holds as many whole blocks as its tokens need.
//!
//! Whoever decodes takes a new block every [`BLOCK_TOKENS`] steps. In which of them is its **phase**, which stays while it decodes;
//! so the blocks of any number of steps follow from how many sequences there are of each phase.

use super::prefix::BLOCK_TOKENS;

const PHASES: usize = BLOCK_TOKENS as usize;

/// Blocks that so many tokens need.
pub(super) fn blocks(tokens: u32) -> u64 {
    u64::from(tokens.div_ceil(BLOCK_TOKENS))
}

/// The phase of a sequence that holds so many tokens before step `step`: it takes a block in every step whose number and phase
/// add up to a multiple of [`BLOCK_TOKENS`].
fn phase(tokens: u32, step: u64) -> usize {
    (u64::from(tokens).wrapping_sub(step) % u64::from(BLOCK_TOKENS)) as usize
}

/// What running sequences hold.
#[derive(Clone, Debug)]
pub(super) struct Kv {
    total_blocks: u64,
    used_blocks: u64,
    tokens: u64,
    /// Sequences that decode.
    decoding: u64,
    /// The same by their phase.
    phases: [u64; PHASES],
}

impl Kv {
    /// An empty cache of the whole blocks in so many tokens, of one at least.
    pub(super) fn new(tokens: u64) -> Kv {
        let total_blocks = (tokens / u64::from(BLOCK_TOKENS)).max(1);
        Kv { total_blocks, used_blocks: 0, tokens: 0, decoding: 0, phases: [0; PHASES] }
    }

    pub(super) fn total_blocks(&self) -> u64 {
        self.total_blocks
    }

    pub(super) fn used_blocks(&self) -> u64 {
        self.used_blocks
    }

    pub(super) fn free_blocks(&self) -> u64 {
        self.total_blocks.saturating_sub(self.used_blocks)
    }

    /// Tokens held, without the empty rest of last blocks.
    pub(super) fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Sequences that decode.
    pub(super) fn decoding(&self) -> u64 {
        self.decoding
    }

    /// A prompt's room is taken.
    pub(super) fn take(&mut self, tokens: u32) {
        self.used_blocks = self.used_blocks.saturating_add(blocks(tokens));
        self.tokens = self.tokens.saturating_add(u64::from(tokens));
    }

    /// A sequence's room is given back.
    pub(super) fn give(&mut self, tokens: u32) {
        self.used_blocks = self.used_blocks.saturating_sub(blocks(tokens));
        self.tokens = self.tokens.saturating_sub(u64::from(tokens));
    }

    /// A sequence that holds so many tokens decodes from this step on.
    pub(super) fn join(&mut self, tokens: u32, step: u64) {
        self.decoding = self.decoding.saturating_add(1);
        if let Some(count) = self.phases.get_mut(phase(tokens, step)) {
            *count = count.saturating_add(1);
        }
    }

    /// A sequence that holds so many tokens before this step decodes no more.
    pub(super) fn leave(&mut self, tokens: u32, step: u64) {
        self.decoding = self.decoding.saturating_sub(1);
        if let Some(count) = self.phases.get_mut(phase(tokens, step)) {
            *count = count.saturating_sub(1);
        }
    }

    /// Blocks that the tokens of a step take.
    pub(super) fn wanted(&self, step: u64) -> u64 {
        self.phases.get(phase(0, step)).copied().unwrap_or(0)
    }

    /// Everybody who decodes is given room for the tokens of so many steps, of which this one is the first.
    pub(super) fn grow(&mut self, step: u64, steps: u64) {
        let rounds = (steps / u64::from(BLOCK_TOKENS)).saturating_mul(self.decoding);
        let rest = (0..steps % u64::from(BLOCK_TOKENS)).map(|k| self.wanted(step.wrapping_add(k))).sum();
        self.used_blocks = self.used_blocks.saturating_add(rounds).saturating_add(rest);
        self.tokens = self.tokens.saturating_add(steps.saturating_mul(self.decoding));
    }

    /// How many steps there is room for, of which this one is the first.
    pub(super) fn steps_until_full(&self, step: u64) -> u64 {
        let free = self.free_blocks();
        let Some(rounds) = free.checked_div(self.decoding) else { return u64::MAX };
        let mut rest = free.saturating_sub(rounds.saturating_mul(self.decoding));
        let mut steps = 0_u64;
        while steps < u64::from(BLOCK_TOKENS) {
            let Some(left) = rest.checked_sub(self.wanted(step.wrapping_add(steps))) else { break };
            rest = left;
            steps = steps.saturating_add(1);
        }
        rounds.saturating_mul(u64::from(BLOCK_TOKENS)).saturating_add(steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use routebalance_core::random::Random;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn many_steps_take_what_one_by_one_take() {
        let mut random = Random::new(3);
        for _ in 0..200 {
            let first = random.below(1_000) as u64;
            let mut kv = Kv::new(4_000 + random.below(4_000) as u64);
            let mut held: Vec<u32> = (0..random.below(12)).map(|_| 1 + random.below(200) as u32).collect();
            for tokens in &held {
                kv.take(*tokens);
                kv.join(*tokens, first);
            }
            let room = kv.steps_until_full(first);
            for steps in 0..60 {
                let used = held.iter().map(|tokens| blocks(*tokens)).sum::<u64>();
                let mut at_once = kv.clone();
                at_once.grow(first, steps);
                assert_eq!(at_once.used_blocks(), used);
                assert_eq!(at_once.tokens(), held.iter().map(|tokens| u64::from(*tokens)).sum::<u64>());
                assert_eq!(steps <= room, used <= kv.total_blocks());
                held.iter_mut().for_each(|tokens| *tokens += 1);
            }
        }
    }
}
