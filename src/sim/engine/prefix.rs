//! Automatic prefix caching: the KV blocks of earlier prompts, until their room is needed.

use std::collections::BTreeMap;

/// Tokens of a block, vLLM's default; only whole blocks are shared.
pub const BLOCK_TOKENS: u32 = 16;

/// Blocks by the hash of everything up to their end; the least recently used go first. Blocks of running sequences are counted
/// beside their KV, not shared with it, so that memory holds a little less than vLLM's.
#[derive(Clone, Debug)]
pub(super) struct PrefixCache {
    capacity: usize,
    last_use: BTreeMap<u64, u64>,
    by_use: BTreeMap<u64, u64>,
    uses: u64,
}

impl PrefixCache {
    pub(super) fn new(kv_tokens: u64) -> Self {
        let capacity = usize::try_from(kv_tokens / u64::from(BLOCK_TOKENS)).unwrap_or(usize::MAX);
        Self { capacity, last_use: BTreeMap::new(), by_use: BTreeMap::new(), uses: 0 }
    }

    /// How many of a prompt's tokens need no prefill. The last one always does: its output is the first token.
    pub(super) fn hit(&mut self, blocks: &[u64], tokens: u32) -> u32 {
        let known = blocks.iter().take_while(|block| self.last_use.contains_key(block)).count();
        let whole = (tokens.saturating_sub(1) / BLOCK_TOKENS) as usize;
        let hit = known.min(whole);
        self.store(blocks.get(..hit).unwrap_or_default());
        u32::try_from(hit).unwrap_or(u32::MAX).saturating_mul(BLOCK_TOKENS)
    }

    /// A prompt is prefilled. The first block is used last, so that a chain loses its end first.
    pub(super) fn store(&mut self, blocks: &[u64]) {
        for block in blocks.iter().rev() {
            self.uses = self.uses.saturating_add(1);
            if let Some(before) = self.last_use.insert(*block, self.uses) {
                self.by_use.remove(&before);
            }
            self.by_use.insert(self.uses, *block);
        }
        self.trim();
    }

    /// Room is taken by an answer, which no prompt of this engine continues.
    pub(super) fn fill(&mut self, tokens: u32) {
        for _ in 0..tokens / BLOCK_TOKENS {
            self.uses = self.uses.saturating_add(1);
            // A hash that no chain has but by chance.
            let block = self.uses.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            self.last_use.insert(block, self.uses);
            self.by_use.insert(self.uses, block);
        }
        self.trim();
    }

    fn trim(&mut self) {
        while self.last_use.len() > self.capacity {
            let Some((_, block)) = self.by_use.pop_first() else { break };
            self.last_use.remove(&block);
        }
    }
}

/// Blocks of a text whose tokens have `token_bytes` bytes each, as a cache with another `seed` does not share them.
pub fn blocks_of(text: &str, token_bytes: usize, seed: u64) -> Vec<u64> {
    let mut hash = seed ^ 0xcbf2_9ce4_8422_2325;
    let mut blocks = Vec::new();
    for block in text.as_bytes().chunks_exact(token_bytes.saturating_mul(BLOCK_TOKENS as usize).max(1)) {
        // FNV-1a over everything up to the block's end.
        hash = block.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
        blocks.push(hash);
    }
    blocks
}
