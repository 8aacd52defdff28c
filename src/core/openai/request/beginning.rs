//! What changes how a prompt begins besides its text: fields of the body, calls of tools, images. All that is kept of them is a hash.

use super::super::scan::{Container, Scalar};
use crate::affinity::{FIELDS_MAX, Fingerprint};

/// Fields that chat templates put before or into the beginning of a prompt, or that make vLLM read or keep the same beginning in
/// another way. Not here: `add_generation_prompt` and `continue_final_message`, which change the end of a prompt, and `tool_choice`
/// and `response_format`, which change what may be generated.
const FIELDS: [&str; 14] = [
    "tools",
    "functions",
    "documents",
    "chat_template",
    "chat_template_kwargs",
    "reasoning_effort",
    "reasoning",
    "cache_salt",
    "mm_processor_kwargs",
    "media_io_kwargs",
    "add_special_tokens",
    "truncate_prompt_tokens",
    "truncation",
    "previous_response_id",
];
const TOOLS: usize = 0;
const FUNCTIONS: usize = 1;
const DOCUMENTS: usize = 2;
const CHAT_TEMPLATE: usize = 3;
const CHAT_TEMPLATE_KWARGS: usize = 4;
/// The conversation that comes before this one's messages.
pub(super) const PREVIOUS_RESPONSE: usize = FIELDS.len() - 1;
const _: () = assert!(FIELDS.len() <= FIELDS_MAX, "the prefix has no room for a field");

/// Which of the fields has this name.
pub(super) fn field(name: &str) -> Option<usize> {
    FIELDS.iter().position(|field| *field == name)
}

/// What a hashed value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of {
    /// A field of the body.
    Field(usize),
    /// What a message calls a tool with.
    ToolCall,
    /// An image or other media in a message.
    Media,
    /// Whatever else stands in a message: only its length counts.
    Unread,
}

impl Of {
    /// Whether it counts as data of tools.
    pub(super) fn is_tool_data(self) -> bool {
        matches!(self, Of::Field(TOOLS | FUNCTIONS) | Of::ToolCall)
    }

    /// Whether its strings count as text that is not read.
    pub(super) fn is_unread(self) -> bool {
        matches!(self, Of::Field(DOCUMENTS | CHAT_TEMPLATE | CHAT_TEMPLATE_KWARGS) | Of::Media | Of::Unread)
    }

    /// Whether the prompt has it as text.
    pub(super) fn is_in_prompt(self) -> bool {
        matches!(self, Of::Field(TOOLS | FUNCTIONS | DOCUMENTS))
    }
}

/// The hash of a JSON value that is being read; spaces between its tokens do not count.
#[derive(Clone, Copy, Debug)]
pub(super) struct Value {
    pub(super) of: Of,
    /// Where it begins.
    pub(super) at: u64,
    depth: u64,
    fingerprint: Fingerprint,
    /// Whether it has a key, a string or a number.
    holds_something: bool,
}

impl Value {
    pub(super) fn new(of: Of, at: u64) -> Value {
        Value { of, at, depth: 0, fingerprint: Fingerprint::default(), holds_something: false }
    }

    /// Whether all that was opened is closed.
    pub(super) fn is_whole(&self) -> bool {
        self.depth == 0
    }

    /// The hash; 0 if there is nothing in the value, which is as good as no value.
    pub(super) fn hash(&self) -> u64 {
        if self.holds_something { self.fingerprint.hash() | 1 } else { 0 }
    }

    /// Bytes of the value without its spaces; 0 if there is nothing in it.
    pub(super) fn bytes(&self) -> u64 {
        if self.holds_something { self.fingerprint.bytes() } else { 0 }
    }

    pub(super) fn open(&mut self, container: Container) {
        self.depth = self.depth.saturating_add(1);
        self.structure(if container == Container::Object { b'{' } else { b'[' });
    }

    pub(super) fn close(&mut self) {
        self.depth = self.depth.saturating_sub(1);
        self.structure(b'}');
    }

    pub(super) fn key(&mut self, name: &str) {
        self.holds_something = true;
        self.structure(b':');
        if self.of != Of::Media {
            self.fingerprint.push(name.as_bytes());
        }
    }

    /// A string begins, which [`Value::text`] brings.
    pub(super) fn string(&mut self) {
        self.holds_something = true;
        self.token(b'"');
    }

    pub(super) fn text(&mut self, piece: &str) {
        if self.of != Of::Unread {
            self.fingerprint.push(piece.as_bytes());
        }
    }

    /// A string ended that began at `at`.
    pub(super) fn string_end(&mut self, at: u64) {
        if self.is_whole() {
            self.at = at;
        }
    }

    pub(super) fn scalar(&mut self, scalar: Scalar<'_>) {
        self.holds_something |= self.depth > 0 || scalar != Scalar::Null;
        self.token(b'0');
        self.text(match scalar {
            Scalar::Null => "null",
            Scalar::Bool(true) => "true",
            Scalar::Bool(false) => "false",
            Scalar::Number(number) => number,
        });
    }

    /// An image is what its strings say: some APIs have its URL in an object, others as it is.
    fn structure(&mut self, tag: u8) {
        if self.of != Of::Media {
            self.token(tag);
        }
    }

    /// 0xff is no byte of UTF-8.
    fn token(&mut self, tag: u8) {
        self.fingerprint.push(&[0xff, tag]);
    }
}

/// The hash of a short text.
pub(super) fn text_hash(text: &str) -> u64 {
    let mut fingerprint = Fingerprint::default();
    fingerprint.push(text.as_bytes());
    fingerprint.hash()
}

/// The hash of a number, a flag or null: 0 for null.
pub(super) fn scalar_hash(scalar: Scalar<'_>) -> u64 {
    let mut value = Value::new(Of::ToolCall, 0);
    value.scalar(scalar);
    value.hash()
}
