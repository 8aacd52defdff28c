//! Strings that stand in no field for text, and that a server may put into its prompt all the same: reasoning, titles, results of
//! tools, whatever a chat template knows. They are counted, and not read.

use crate::features::TextCount;

/// Fields whose values no server tokenises: ids, signatures, addresses, and words that say what the others are.
const PAYLOADS: [&str; 28] = [
    "annotations",
    "audio_embeds",
    "cache_control",
    "call_id",
    "container_id",
    "detail",
    "encrypted_content",
    "file_data",
    "file_id",
    "file_url",
    "format",
    "id",
    "image_embeds",
    "image_url",
    "item_id",
    "media_type",
    "mime_type",
    "object",
    "response_id",
    "signature",
    "status",
    "thought_signature",
    "tool_call_id",
    "tool_use_id",
    "type",
    "url",
    "uuid",
    "video_url",
];

/// Shortest string of nothing but letters and digits of base 64 that is taken for a payload: no text goes on so long without a blank.
const BASE64_BYTES_MIN: u64 = 256;

/// Whether a field of this name holds nothing that is tokenised.
pub(super) fn is_payload(name: &str) -> bool {
    PAYLOADS.contains(&name)
}

/// What is known of the string that is being read.
#[derive(Clone, Copy, Debug)]
struct Shape {
    bytes: u64,
    /// How much of `data:` it begins with.
    scheme: usize,
    is_base64: bool,
    base64_bytes_min: u64,
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
    key: Key,
    /// Whether a field `type` says that the value holds text.
    is_text: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Key {
    #[default]
    Other,
    Payload,
    Type,
    Data,
}

const SCHEME: &[u8] = b"data:";

impl Shape {
    fn push(&mut self, piece: &[u8]) {
        for byte in piece.iter().take(SCHEME.len().saturating_sub(self.scheme)) {
            let at = usize::try_from(self.bytes).unwrap_or(usize::MAX);
            if at == self.scheme && SCHEME.get(self.scheme) == Some(byte) {
                self.scheme = self.scheme.saturating_add(1);
            }
            self.bytes = self.bytes.saturating_add(1);
        }
        let counted = piece.len().min(SCHEME.len());
        self.bytes = self.bytes.saturating_add(piece.len().saturating_sub(counted) as u64);
        self.is_base64 &= piece.iter().all(|b| b.is_ascii_alphanumeric() || b"+/=-_".contains(b));
    }

    fn is_payload(self) -> bool {
        self.scheme == SCHEME.len() || (self.is_base64 && self.bytes >= self.base64_bytes_min)
    }
}

impl Unread {
    /// Estimated tokens of all strings so far.
    pub(super) fn count(&self) -> &TextCount {
        &self.count
    }

    /// A value begins.
    pub(super) fn begin(&mut self) {
        (self.depth, self.payload_below, self.key, self.is_text) = (0, None, Key::Other, false);
    }

    /// Whether the value that was read says that it is text.
    pub(super) fn is_text(&self) -> bool {
        self.is_text
    }

    pub(super) fn open(&mut self) {
        self.depth = self.depth.saturating_add(1);
        if matches!(self.key, Key::Payload | Key::Type) && self.payload_below.is_none() {
            self.payload_below = Some(self.depth);
        }
    }

    pub(super) fn close(&mut self) {
        if self.payload_below == Some(self.depth) {
            self.payload_below = None;
        }
        self.depth = self.depth.saturating_sub(1);
        // What follows in an array has no key of its own.
        self.key = Key::Other;
    }

    pub(super) fn key(&mut self, name: &str) {
        self.key = match name {
            "type" => Key::Type,
            "data" => Key::Data,
            name if is_payload(name) => Key::Payload,
            _ => Key::Other,
        };
    }

    /// A string begins, which is text for certain, a payload for certain, or what it looks like.
    pub(super) fn string(&mut self, is_certain: bool, is_payload: bool) {
        self.counts = !is_payload && self.payload_below.is_none() && matches!(self.key, Key::Other | Key::Data);
        self.before.clone_from(&self.count);
        let is_certain = is_certain || self.is_text;
        let base64_bytes_min = if self.key == Key::Data { 0 } else { BASE64_BYTES_MIN };
        let shape = Shape { bytes: 0, scheme: 0, is_base64: true, base64_bytes_min };
        self.shape = Some(shape).filter(|_| self.counts && !is_certain);
        if self.counts {
            self.count.push_str("\n");
        }
    }

    pub(super) fn text(&mut self, piece: &str) {
        if self.key == Key::Type && self.depth == 1 && matches!(piece, "text" | "content") {
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
            ("title", "data", true),
            ("title", "database", true),
            ("title", long("Ab9+/").as_str(), false),
            ("title", long("Ab9 ").as_str(), true),
            ("title", long("日本語").as_str(), true),
            ("data", "iVBORw0KGgo=", false),
            ("data", "plain words", true),
            ("signature", "plain words", false),
            ("type", "plain words", false),
        ] {
            for at_once in [true, false] {
                let mut unread = Unread::default();
                unread.begin();
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
}
