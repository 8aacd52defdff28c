//! Hashes of a prompt's beginning, taken while the body is scanned.
//!
//! A body has its fields in any order; a chat template has its own: definitions of tools and the system prompt, then the
//! conversation. So each of these is hashed by itself as it comes, and [`Prefix::keys`] puts them in the template's order.

mod chain;

use chain::Chain;
pub use chain::Fingerprint;
pub(super) use chain::{hash, mix};

use crate::hash::finish;

/// Most keys of a prompt's beginning: those of the longest chain, and some for what follows a long system prompt.
pub const KEYS_MAX: usize = 40;

/// Most fields beside the messages that change how a prompt begins.
pub const FIELDS_MAX: usize = 16;

/// So much has to stand before the conversation for its end to be worth a look-up.
const FRONT_BYTES_MIN: u64 = 256;

const FRONT_ENDS: u64 = 0x6672_6f6e_7420_656e;

// What stands between texts of a prompt. 0xff is no byte of UTF-8.
const MESSAGE: [u8; 2] = [0xff, 1];
const TEXT: [u8; 2] = [0xff, 2];
const MEDIA: [u8; 2] = [0xff, 3];
const TOKEN_ID: [u8; 2] = [0xff, 4];
const MESSAGE_ENDS: [u8; 2] = [0xff, 5];

/// The beginning of a prompt as chains of hashes: a key covers everything up to its block's end, so equal keys are equal
/// beginnings, roles and the order of messages included. Bounded, whatever the prompt's size; one pass.
#[derive(Clone, Debug, Default)]
pub struct Prefix {
    fields: [PromptField; FIELDS_MAX],
    /// What a field of its own holds: `system` or `instructions`.
    system: Chain,
    /// The first message, if it is the system's: what another API has in a field.
    first: Chain,
    /// All other messages, or a prompt that is no conversation.
    conversation: Chain,
    /// Whether `system` is being read.
    in_system: bool,
    /// Messages that have begun.
    messages: u32,
    message: Message,
}

/// A field that changes how the prompt begins.
#[derive(Clone, Copy, Debug, Default)]
struct PromptField {
    /// 0 if it is not there.
    hash: u64,
    /// How much of it stands in the prompt.
    prompt_bytes: u64,
}

/// The message that is being read.
#[derive(Clone, Copy, Debug, Default)]
struct Message {
    is_system: bool,
    texts: u32,
    /// Sum of the hashes of what stands beside its texts, wherever it stands in the message.
    details: u64,
}

impl Prefix {
    /// A field changes how the prompt begins; `hash` is 0 if it holds nothing. Repeated, the last one counts.
    pub fn field(&mut self, field: usize, hash: u64, prompt_bytes: u64) {
        if let Some(kept) = self.fields.get_mut(field) {
            *kept = PromptField { hash, prompt_bytes };
        }
    }

    /// The field of the system prompt begins: the same as a first message of the system with one text.
    pub fn begin_system(&mut self) {
        self.clear_system();
        self.in_system = true;
        self.message = Message::default();
        self.push(&MESSAGE);
        self.role("system");
    }

    /// The field of the system prompt ended.
    pub fn end_system(&mut self) {
        self.end_message();
        self.in_system = false;
    }

    /// The field of the system prompt holds nothing.
    pub fn clear_system(&mut self) {
        (self.system, self.in_system) = (Chain::default(), false);
    }

    /// The field of the conversation comes again, and replaces what it held.
    pub fn clear_conversation(&mut self) {
        (self.first, self.conversation, self.messages) = (Chain::default(), Chain::default(), 0);
    }

    /// A message begins.
    pub fn begin_message(&mut self) {
        self.messages = self.messages.saturating_add(1);
        self.message = Message::default();
        self.push(&MESSAGE);
    }

    /// The message's role, before or after its text.
    pub fn role(&mut self, role: &str) {
        self.message.is_system = matches!(role, "system" | "developer");
        self.chain().role(hash(0, role.as_bytes()));
    }

    /// The message has something beside its texts, such as a name or a call of a tool.
    pub fn detail(&mut self, hash: u64) {
        self.message.details = self.message.details.wrapping_add(hash);
    }

    /// The message ended.
    pub fn end_message(&mut self) {
        let Message { is_system, details, .. } = std::mem::take(&mut self.message);
        self.chain().end_role();
        self.push(&MESSAGE_ENDS);
        self.push(&details.to_le_bytes());
        if is_system && self.messages == 1 && !self.in_system {
            self.first = std::mem::take(&mut self.conversation);
        }
    }

    /// A text begins. The texts of a system prompt's field are one.
    pub fn begin_text(&mut self) {
        if self.message.texts > 0 && !self.in_system {
            self.push(&TEXT);
        }
        self.message.texts = self.message.texts.saturating_add(1);
    }

    /// Appends text; pieces may be cut anywhere.
    pub fn push(&mut self, bytes: &[u8]) {
        // A first message may yet turn out to be the system's, of which all counts.
        let may_stop = !self.in_system && self.messages != 1;
        self.chain().push(bytes, may_stop);
    }

    /// Appends an image or other media.
    pub fn media(&mut self, hash: u64) {
        self.push(&MEDIA);
        self.push(&hash.to_le_bytes());
    }

    /// Appends a token's id, as written.
    pub fn token_id(&mut self, id: &str) {
        self.push(&TOKEN_ID);
        self.push(id.as_bytes());
    }

    /// What the beginning is remembered under: for every block, and for all that stands before the conversation, a hash of
    /// everything up to its end, and what share of the prompt that is.
    pub fn keys(&self, seed: u64) -> Vec<(u64, f64)> {
        let mut seed = self.fields.iter().fold(seed, |seed, field| mix(seed, field.hash));
        let fields = self.fields.iter().fold(0_u64, |bytes, field| bytes.saturating_add(field.prompt_bytes));
        let front = self.system.bytes().saturating_add(self.first.bytes()).saturating_add(fields);
        let mut keys =
            PrefixKeys { kept: Vec::new(), end: 0, bytes: front.saturating_add(self.conversation.bytes()).max(1) };
        keys.append(&self.system, 0, seed);
        seed = self.system.then(seed);
        keys.append(&self.first, self.system.bytes(), seed);
        seed = self.first.then(seed);
        // Templates put tools before the system prompt or after it: they are sure to be shared at its end only.
        if front >= FRONT_BYTES_MIN {
            keys.push(finish(mix(seed, FRONT_ENDS)), front);
        }
        keys.append(&self.conversation, front, seed);
        keys.kept
    }

    /// What is being read.
    fn chain(&mut self) -> &mut Chain {
        if self.in_system { &mut self.system } else { &mut self.conversation }
    }
}

/// Keys of a prompt's beginning, as far as they are gathered.
struct PrefixKeys {
    kept: Vec<(u64, f64)>,
    /// Where the last one ends.
    end: u64,
    /// Of the whole prompt.
    bytes: u64,
}

impl PrefixKeys {
    fn push(&mut self, key: u64, end: u64) {
        if self.kept.len() < KEYS_MAX {
            self.kept.push((key, end as f64 / self.bytes as f64));
            self.end = end;
        }
    }

    /// Keys of a chain that begins at `at`. Its first blocks are small; after a long system prompt, some of them are left out,
    /// as long as no match gets shorter by more than a sixth. Which ones depends on nothing but `at`, so that prompts that
    /// have what is before it in common have the same.
    fn append(&mut self, chain: &Chain, at: u64, seed: u64) {
        for (hash, end, next_end) in chain.blocks() {
            if (at.saturating_add(next_end)).saturating_mul(5) > self.end.saturating_mul(6) {
                self.push(finish(mix(hash, seed)), at.saturating_add(end));
            }
        }
    }
}
