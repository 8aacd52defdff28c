//! Strings that stand in no field for text, and that a server may put into its prompt all the same: reasoning, titles, results of
//! tools, whatever a chat template knows. They are counted, and not read.

use crate::features::TextCount;

/// Fields whose values no server tokenises: ids, addresses, and words that say what the others are.
const PAYLOADS: [&str; 19] = [
    "annotations",
    "call_id",
    "container_id",
    "detail",
    "file_id",
    "file_url",
    "format",
    "id",
    "item_id",
    "media_type",
    "mime_type",
    "object",
    "response_id",
    "status",
    "tool_call_id",
    "tool_use_id",
    "type",
    "url",
    "uuid",
];

/// The same, however long.
const SECRETS: [&str; 9] = [
    "audio_embeds",
    "cache_control",
    "encrypted_content",
    "file_data",
    "image_embeds",
    "image_url",
    "signature",
    "thought_signature",
    "video_url",
];

/// Shortest string of nothing but letters and digits of base 64 that is taken for a payload: no text goes on so long without a blank.
const BASE64_BYTES_MIN: u64 = 256;

/// Whether a field of this name holds nothing that is tokenised.
pub(super) fn is_payload(name: &str) -> bool {
    PAYLOADS.contains(&name)
}

/// Whether that is so whatever it holds.
pub(super) fn is_secret(name: &str) -> bool {
    SECRETS.contains(&name)
}

/// What is known of the string that is being read.
#[derive(Clone, Copy, Debug)]
struct Shape {
    bytes: u64,
    scheme: Scheme,
    /// Whether all of it may be base 64, and which kinds of its digits were seen: each stands in a long one.
    is_base64: bool,
    has_upper: bool,
    has_lower: bool,
    has_digit: bool,
    base64_bytes_min: u64,
}

/// How far a string is the beginning of a URL that holds its data: `data:`, a type without blanks, and a comma.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    /// So many of its first characters.
    Begun(usize),
    Type,
    Whole,
    Other,
}

/// The tokens of such strings.
#[derive(Clone, Debug, Default)]
pub(super) struct Unread {
    count: TextCount,
    /// Before the string that is being read.
    before: TextCount,
    /// None where the string is text for certain, or does not count.
    shape: Option<Shape>,
    counts: bool,
    depth: u64,
    /// The depth below which nothing counts.
    payload_below: Option<u64>,
    key: UnreadKey,
    is_certain: bool,
    /// Whether a field `type` says that the value holds text.
    is_text: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum UnreadKey {
    #[default]
    Other,
    Payload,
    Type,
    Data,
}

const SCHEME: &[u8] = b"data:";
/// Longest type before the comma.
const TYPE_BYTES_MAX: u64 = 128;

impl Scheme {
    fn next(self, byte: u8, at: u64) -> Scheme {
        match self {
            Scheme::Begun(matched) if SCHEME.get(matched) == Some(&byte) => {
                let matched = matched.saturating_add(1);
                if matched == SCHEME.len() { Scheme::Type } else { Scheme::Begun(matched) }
            }
            Scheme::Type if byte == b',' => Scheme::Whole,
            Scheme::Type if byte > b' ' && at < TYPE_BYTES_MAX => Scheme::Type,
            Scheme::Whole => Scheme::Whole,
            Scheme::Begun(_) | Scheme::Type | Scheme::Other => Scheme::Other,
        }
    }
}

impl Shape {
    fn new(base64_bytes_min: u64) -> Shape {
        Shape {
            bytes: 0,
            scheme: Scheme::Begun(0),
            is_base64: true,
            has_upper: false,
            has_lower: false,
            has_digit: false,
            base64_bytes_min,
        }
    }

    fn push(&mut self, piece: &[u8]) {
        for (at, byte) in piece.iter().enumerate() {
            if !matches!(self.scheme, Scheme::Begun(_) | Scheme::Type) {
                break;
            }
            self.scheme = self.scheme.next(*byte, self.bytes.saturating_add(at as u64));
        }
        self.bytes = self.bytes.saturating_add(piece.len() as u64);
        if self.is_base64 {
            self.has_upper |= piece.iter().any(u8::is_ascii_uppercase);
            self.has_lower |= piece.iter().any(u8::is_ascii_lowercase);
            self.has_digit |= piece.iter().any(u8::is_ascii_digit);
            self.is_base64 = piece.iter().all(|b| b.is_ascii_alphanumeric() || b"+/=-_".contains(b));
        }
    }

    fn is_payload(self) -> bool {
        // What is called data may be all zeros; words of one case are no data.
        let is_mixed = self.base64_bytes_min == 0 || (self.has_upper && self.has_lower && self.has_digit);
        let is_base64 = self.is_base64 && is_mixed && self.bytes >= self.base64_bytes_min;
        self.scheme == Scheme::Whole || is_base64
    }
}

impl Unread {
    /// Estimated tokens of all strings so far.
    pub(super) fn count(&self) -> &TextCount {
        &self.count
    }

    /// A value begins; `is_certain` where all of it is text, its keys too.
    pub(super) fn begin(&mut self, is_certain: bool) {
        self.is_certain = is_certain;
        (self.depth, self.payload_below, self.key, self.is_text) = (0, None, UnreadKey::Other, false);
    }

    /// Whether the value that was read says that it is text.
    pub(super) fn is_text(&self) -> bool {
        self.is_text
    }

    pub(super) fn open(&mut self) {
        self.depth = self.depth.saturating_add(1);
        if matches!(self.key, UnreadKey::Payload | UnreadKey::Type) && self.payload_below.is_none() {
            self.payload_below = Some(self.depth);
        }
    }

    pub(super) fn close(&mut self) {
        if self.payload_below == Some(self.depth) {
            self.payload_below = None;
        }
        self.depth = self.depth.saturating_sub(1);
        // What follows in an array has no key of its own.
        self.key = UnreadKey::Other;
    }

    pub(super) fn key(&mut self, name: &str) {
        if self.is_certain {
            self.count.push_str("\n");
            self.count.push_str(name);
        }
        self.key = match name {
            _ if self.is_certain => UnreadKey::Other,
            "type" => UnreadKey::Type,
            "data" => UnreadKey::Data,
            name if is_payload(name) || is_secret(name) => UnreadKey::Payload,
            _ => UnreadKey::Other,
        };
    }

    /// A string begins, which is text for certain, a payload for certain, or what it looks like.
    pub(super) fn string(&mut self, is_certain: bool, is_payload: bool) {
        self.counts =
            !is_payload && self.payload_below.is_none() && matches!(self.key, UnreadKey::Other | UnreadKey::Data);
        self.before.clone_from(&self.count);
        let is_certain = is_certain || self.is_certain || self.is_text;
        let shape = Shape::new(if self.key == UnreadKey::Data { 0 } else { BASE64_BYTES_MIN });
        self.shape = Some(shape).filter(|_| self.counts && !is_certain);
        if self.counts {
            self.count.push_str("\n");
        }
    }

    pub(super) fn text(&mut self, piece: &str) {
        if self.key == UnreadKey::Type && self.depth == 1 && matches!(piece, "text" | "content") {
            self.is_text = true;
        }
        if !self.counts {
            return;
        }
        self.count.push_str(piece);
        if let Some(shape) = &mut self.shape {
            shape.push(piece.as_bytes());
        }
    }

    pub(super) fn string_end(&mut self) {
        if self.shape.take().is_some_and(Shape::is_payload) {
            self.count.clone_from(&self.before);
        }
        self.counts = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn strings_that_are_no_text() {
        let long = |text: &str| text.repeat(300);
        for (key, text, counts) in [
            ("title", "A title of a few words", true),
            ("title", "x", true),
            ("title", "data:image/png;base64,AAAA BBBB", false),
            ("title", "data: any, text", true),
            ("title", long("data").as_str(), true),
            ("title", long("word_").as_str(), true),
            ("title", "data", true),
            ("title", "database", true),
            ("title", long("Ab9+/").as_str(), false),
            ("title", long("Ab9 ").as_str(), true),
            ("title", long("日本語").as_str(), true),
            ("data", "iVBORw0KGgo=", false),
            ("data", long("AAAA").as_str(), false),
            ("data", "plain words", true),
            ("signature", "plain words", false),
            ("type", "plain words", false),
        ] {
            for at_once in [true, false] {
                let mut unread = Unread::default();
                unread.begin(false);
                unread.open();
                unread.key(key);
                unread.string(false, false);
                if at_once {
                    unread.text(text);
                } else {
                    text.split_inclusive(|_| true).for_each(|c| unread.text(c));
                }
                unread.string_end();
                unread.close();
                assert_eq!(unread.count().estimated_tokens() > 0, counts, "{key} {text}");
            }
        }
    }

    #[test]
    fn where_all_is_text_so_are_keys_and_addresses() {
        let mut unread = Unread::default();
        unread.begin(true);
        unread.open();
        for key in ["url", "a long key of several words"] {
            let before = unread.count().estimated_tokens();
            unread.key(key);
            assert!(unread.count().estimated_tokens() > before, "{key}");
            let before = unread.count().estimated_tokens();
            unread.string(false, false);
            unread.text("data:text/plain,words of text");
            unread.string_end();
            assert!(unread.count().estimated_tokens() > before, "{key}");
        }
    }
}
