//! Automatic prefix caching: the KV blocks of earlier prompts, until their room is needed.

use std::collections::BTreeMap;

/// Tokens of a block, vLLM's default; only whole blocks are shared.
pub const BLOCK_TOKENS: u32 = 16;

/// Who has a place in the order of use.
#[derive(Clone, Copy, Debug)]
enum User {
    /// The block with this hash.
    Block(u64),
    /// So many blocks of an answer, which no prompt of this engine continues.
    Answer(usize),
}

/// Blocks by the hash of everything up to their end; the least recently used go first. Blocks of running sequences are counted
/// beside their KV, not shared with it, so that memory holds a little less than vLLM's.
#[derive(Clone, Debug)]
pub(super) struct PrefixCache {
    capacity: usize,
    /// Blocks in [`Self::by_use`].
    len: usize,
    last_use: BTreeMap<u64, u64>,
    by_use: BTreeMap<u64, User>,
    uses: u64,
}

impl PrefixCache {
    /// An empty cache of so many blocks.
    pub(super) fn new(blocks: u64) -> Self {
        let capacity = usize::try_from(blocks).unwrap_or(usize::MAX);
        Self { capacity, len: 0, last_use: BTreeMap::new(), by_use: BTreeMap::new(), uses: 0 }
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
            match self.last_use.insert(*block, self.uses) {
                Some(before) => self.by_use.remove(&before),
                None => {
                    self.len = self.len.saturating_add(1);
                    None
                }
            };
            self.by_use.insert(self.uses, User::Block(*block));
        }
        self.trim();
    }

    /// Room is taken by an answer.
    pub(super) fn fill(&mut self, tokens: u32) {
        // What is older than every prompt would go first, and nobody asks for it.
        if self.last_use.is_empty() {
            return;
        }
        let blocks = (tokens / BLOCK_TOKENS) as usize;
        self.uses = self.uses.saturating_add(1);
        self.by_use.insert(self.uses, User::Answer(blocks));
        self.len = self.len.saturating_add(blocks);
        self.trim();
    }

    fn trim(&mut self) {
        while self.len > self.capacity {
            let Some((at, user)) = self.by_use.pop_first() else { break };
            let too_many = self.len.saturating_sub(self.capacity);
            let gone = match user {
                User::Block(block) => {
                    self.last_use.remove(&block);
                    1
                }
                User::Answer(blocks) if blocks > too_many => {
                    self.by_use.insert(at, User::Answer(blocks.saturating_sub(too_many)));
                    too_many
                }
                User::Answer(blocks) => blocks,
            };
            self.len = self.len.saturating_sub(gone);
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
