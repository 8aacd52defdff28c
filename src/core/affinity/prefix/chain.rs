//! A text of any length as a bounded number of hashes.

use crate::hash::finish;

/// Most blocks of a text's beginning.
const BLOCKS_MAX: usize = 32;

/// Bytes of a block at the beginning: about the 64 tokens that are worth a look-up.
const BLOCK_BYTES: u64 = 256;
/// After so many blocks each further one is a fifth of all before it, so that 32 blocks reach 160 KB, the context of most models,
/// and a match is at most a sixth shorter than what is really shared.
const EVEN_BLOCKS: usize = 8;

/// Where each block ends, in bytes; multiples of 8.
const ENDS: [u64; BLOCKS_MAX] = ends();

#[allow(clippy::indexing_slicing, reason = "evaluated by the compiler")]
const fn ends() -> [u64; BLOCKS_MAX] {
    let mut ends = [0; BLOCKS_MAX];
    let mut block = 0;
    let mut end = 0_u64;
    while block < BLOCKS_MAX {
        end = if block < EVEN_BLOCKS { end + BLOCK_BYTES } else { end * 6 / 5 / 8 * 8 };
        ends[block] = end;
        block += 1;
    }
    ends
}

/// The hash of bytes that come in pieces, wherever they are cut.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fingerprint {
    state: u64,
    /// Bytes that do not make a word of 8 yet.
    word: u64,
    word_bytes: u32,
    /// Bytes in `state`.
    hashed: u64,
}

impl Fingerprint {
    /// Appends bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.push_words(bytes, |_, _| {});
    }

    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.hashed.saturating_add(u64::from(self.word_bytes))
    }

    /// The hash of all bytes so far.
    pub fn hash(&self) -> u64 {
        finish(mix(mix(self.state, self.word), self.bytes()))
    }

    /// Appends bytes, and tells the state and the bytes in it after every word.
    fn push_words(&mut self, mut bytes: &[u8], mut each: impl FnMut(u64, u64)) {
        while self.word_bytes > 0
            && let Some((byte, rest)) = bytes.split_first()
        {
            self.byte(*byte, &mut each);
            bytes = rest;
        }
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| self.absorb(u64::from_le_bytes(*word), &mut each));
        rest.iter().for_each(|byte| self.byte(*byte, &mut each));
    }

    fn byte(&mut self, byte: u8, each: &mut impl FnMut(u64, u64)) {
        self.word |= u64::from(byte) << (8 * self.word_bytes);
        self.word_bytes += 1;
        if self.word_bytes == 8 {
            self.absorb(self.word, each);
            (self.word, self.word_bytes) = (0, 0);
        }
    }

    fn absorb(&mut self, word: u64, each: &mut impl FnMut(u64, u64)) {
        self.state = mix(self.state, word);
        self.hashed = self.hashed.saturating_add(8);
        each(self.state, self.hashed);
    }
}

/// A text, or messages, as a chain of hashes: that of a block covers everything up to its end.
#[derive(Clone, Debug, Default)]
pub(super) struct Chain {
    fingerprint: Fingerprint,
    hashes: [u64; BLOCKS_MAX],
    blocks: usize,
    /// The role of the message that is being read, and the first block that ends in it: a role is part of the blocks that its
    /// text has filled before it was known.
    role: u64,
    role_from: usize,
    /// Bytes beyond the last block that are not hashed.
    skipped: u64,
}

impl Chain {
    /// Appends bytes. What comes after the last block need not be hashed if nothing follows the chain.
    pub(super) fn push(&mut self, bytes: &[u8], may_stop: bool) {
        if may_stop && self.blocks >= BLOCKS_MAX {
            self.skipped = self.skipped.saturating_add(bytes.len() as u64);
            return;
        }
        let Chain { fingerprint, hashes, blocks, .. } = self;
        fingerprint.push_words(bytes, |state, hashed| {
            if ENDS.get(*blocks) == Some(&hashed)
                && let Some(hash) = hashes.get_mut(*blocks)
            {
                *hash = state;
                *blocks += 1;
            }
        });
    }

    /// The role of the message that is being read.
    pub(super) fn role(&mut self, role: u64) {
        self.role = role;
    }

    /// The message that is being read ended.
    pub(super) fn end_role(&mut self) {
        let role = std::mem::take(&mut self.role);
        if role != 0 {
            let ended = self.hashes.iter_mut().take(self.blocks).skip(self.role_from);
            ended.for_each(|hash| *hash = mix(*hash, role));
            self.fingerprint.state = mix(self.fingerprint.state, role);
        }
        self.role_from = self.blocks;
    }

    /// All bytes, hashed or not.
    pub(super) fn bytes(&self) -> u64 {
        self.fingerprint.bytes().saturating_add(self.skipped)
    }

    /// For each whole block: its hash, where it ends, and where the next one would.
    pub(super) fn blocks(&self) -> impl Iterator<Item = (u64, u64, u64)> {
        let next_ends = ENDS.into_iter().skip(1).chain([u64::MAX]);
        let blocks = self.hashes.iter().zip(ENDS).zip(next_ends).take(self.blocks).enumerate();
        blocks.map(|(block, ((hash, end), next_end))| {
            let in_message = self.role != 0 && block >= self.role_from;
            (if in_message { mix(*hash, self.role) } else { *hash }, end, next_end)
        })
    }

    /// The seed of what follows this chain: that of what it follows, if it is empty.
    pub(super) fn then(&self, seed: u64) -> u64 {
        if self.bytes() == 0 { seed } else { mix(mix(seed, self.fingerprint.hash()), self.role) }
    }
}

/// One word more. A multiplication by an odd number and a shift lose nothing, so a chain differs for ever once it does (but for
/// words chosen to make it collide, which costs a worse decision and nothing else).
pub(crate) fn mix(state: u64, word: u64) -> u64 {
    let product = (state.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    product ^ (product >> 32)
}

/// The hash of a short text.
pub(crate) fn hash(seed: u64, bytes: &[u8]) -> u64 {
    let mut fingerprint = Fingerprint { state: seed, ..Fingerprint::default() };
    fingerprint.push(bytes);
    fingerprint.hash()
}
