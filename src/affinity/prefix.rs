//! Hashes of a prompt's beginning, taken while the body is scanned.

/// Most blocks of a prompt's beginning.
pub const BLOCKS_MAX: usize = 32;

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

/// What stands between texts of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// A message begins.
    Message = 1,
    /// A message's role follows.
    Role = 2,
    /// A text begins.
    Text = 3,
    /// An image stood here.
    Image = 4,
    /// A call of a tool stood here.
    ToolCall = 5,
    /// A token id follows.
    TokenId = 6,
}

/// The beginning of a prompt as a chain of hashes: a block's hash covers everything up to its end, so equal hashes are equal
/// beginnings, roles and the order of messages included. Bounded, whatever the prompt's size; one pass.
#[derive(Clone, Debug, Default)]
pub struct Prefix {
    state: u64,
    /// Bytes that do not make a word of 8 yet.
    word: u64,
    word_bytes: u32,
    /// Bytes in `state`.
    hashed: u64,
    /// All bytes so far, hashed or beyond the last block.
    bytes: u64,
    hashes: [u64; BLOCKS_MAX],
    blocks: usize,
    /// What stands before all messages in the prompt, wherever it stands in the body.
    front: u64,
}

impl Prefix {
    /// Appends text; pieces may be cut anywhere.
    pub fn push(&mut self, mut bytes: &[u8]) {
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
        if self.blocks >= BLOCKS_MAX {
            return;
        }
        while self.word_bytes > 0
            && let Some((byte, rest)) = bytes.split_first()
        {
            self.byte(*byte);
            bytes = rest;
        }
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| self.absorb(u64::from_le_bytes(*word)));
        rest.iter().for_each(|byte| self.byte(*byte));
    }

    /// Appends what is no text. 0xff is no byte of UTF-8.
    pub fn mark(&mut self, mark: Mark) {
        self.push(&[0xff, mark as u8]);
    }

    /// Appends something of which only the size is known.
    pub fn unread(&mut self, mark: Mark, bytes: u64) {
        self.mark(mark);
        self.push(&bytes.to_le_bytes());
    }

    /// Something stands before all messages of which only the size is known: definitions of tools.
    pub fn before_all(&mut self, bytes: u64) {
        self.front = mix(self.front, bytes.wrapping_add(1));
    }

    /// For each whole block: its hash, and what share of the prompt ends with it.
    pub fn keys(&self, seed: u64) -> impl Iterator<Item = (u64, f64)> {
        let seed = mix(seed, self.front);
        let bytes = self.bytes.max(1) as f64;
        let ends = self.hashes.iter().zip(ENDS).take(self.blocks);
        ends.map(move |(hash, end)| (finish(mix(*hash, seed)), end as f64 / bytes))
    }

    fn byte(&mut self, byte: u8) {
        self.word |= u64::from(byte) << (8 * self.word_bytes);
        self.word_bytes += 1;
        if self.word_bytes == 8 {
            self.absorb(self.word);
            (self.word, self.word_bytes) = (0, 0);
        }
    }

    fn absorb(&mut self, word: u64) {
        self.state = mix(self.state, word);
        self.hashed = self.hashed.saturating_add(8);
        if ENDS.get(self.blocks) == Some(&self.hashed)
            && let Some(hash) = self.hashes.get_mut(self.blocks)
        {
            *hash = self.state;
            self.blocks += 1;
        }
    }
}

/// One word more. A multiplication by an odd number and a shift lose nothing, so a chain differs for ever once it does (but for
/// words chosen to make it collide, which costs a worse decision and nothing else).
pub(super) fn mix(state: u64, word: u64) -> u64 {
    let product = (state.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    product ^ (product >> 32)
}

/// SplitMix64's finish (Steele, Lea and Flood 2014): near states get far keys.
fn finish(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The hash of a short text.
pub(super) fn hash(seed: u64, bytes: &[u8]) -> u64 {
    let mut prefix = Prefix { state: seed, ..Prefix::default() };
    prefix.push(bytes);
    finish(mix(mix(prefix.state, prefix.word), prefix.bytes))
}
