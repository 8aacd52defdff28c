//! JSON as a stream of events. Pieces may be cut anywhere, even inside a character or an escape; every byte is looked at once,
//! and nothing is kept but one short token, so that a body of any size costs the same memory.
//!
//! The language is what Python's `json.loads` accepts, because that is what vLLM reads a body with: RFC 8259 plus `NaN`,
//! `Infinity`, `-Infinity`, a byte order mark and lone surrogates. Two differences: malformed UTF-8 becomes U+FFFD instead of an
//! error, and UTF-16 or UTF-32 bodies are refused.

mod string;

use std::{ops::Range, str};

use string::{SplitChar, plain_length};

/// Deepest nesting of objects and arrays; Python's own limit is near 1,000.
const DEPTH_MAX: usize = 512;
/// Keys and kept values are cut after this many bytes.
const TOKEN_BYTES_MAX: usize = 256;
/// Nesting to which [`Levels`] remembers meanings: the deepest that any API gives one is a block in a tool result (7).
const LEVELS_MAX: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Container {
    Object,
    Array,
}

/// How much of a string value a sink wants to see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Want {
    #[default]
    Nothing,
    /// All of it at once in [`Sink::string_end`], cut after [`TOKEN_BYTES_MAX`] bytes.
    Whole,
    /// Every character, in [`Sink::text`], as it comes.
    Pieces,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scalar<'a> {
    Null,
    Bool(bool),
    /// As written; `NaN` and the infinities too. Empty where it has more than [`TOKEN_BYTES_MAX`] bytes.
    Number(&'a str),
}

/// A string value that was wanted whole.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kept<'a> {
    pub(super) text: &'a str,
    /// Whether `text` is only the beginning.
    pub(super) cut: bool,
}

/// Receives the events. Offsets count bytes from the start of the body.
pub(super) trait Sink {
    /// An object or array begins; its bracket is at `at`.
    fn open(&mut self, container: Container, at: u64);
    /// The innermost object or array ended just before `end`.
    fn close(&mut self, end: u64);
    /// The next value belongs to this key, unescaped and cut after [`TOKEN_BYTES_MAX`] bytes.
    fn key(&mut self, name: &str);
    /// A string value begins.
    fn string(&mut self) -> Want;
    /// More of a string wanted in pieces, unescaped.
    fn text(&mut self, piece: &str);
    /// A string value ended; `span` includes its quotes, `kept` is empty unless it was wanted whole.
    fn string_end(&mut self, kept: Kept<'_>, span: Range<u64>);
    /// A number, a boolean or null.
    fn scalar(&mut self, scalar: Scalar<'_>, span: Range<u64>);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ScanFailure {
    /// Not JSON; the first byte that cannot be is at `offset`.
    Syntax { offset: u64 },
    /// Nested deeper than [`DEPTH_MAX`].
    TooDeep,
}

/// Reads one JSON value.
#[derive(Clone, Debug, Default)]
pub(super) struct Scanner {
    state: ScanState,
    failure: Option<ScanFailure>,
    offset: u64,
    depth: usize,
    /// One bit per open container: whether it is an object.
    objects: [u64; DEPTH_MAX / 64],
    /// Where the token that is being read began.
    token_at: u64,
    token: Vec<u8>,
    token_cut: bool,
    is_key: bool,
    want: Want,
    /// The first half of a surrogate pair, until its second half comes or does not.
    high_surrogate: Option<u16>,
    /// The beginning of a character whose other bytes are in the next piece.
    split_char: SplitChar,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ScanState {
    /// Before anything; so many bytes of a byte order mark were seen.
    Start(u8),
    Value,
    /// After `[`: a value or `]`.
    FirstElement,
    /// After `{`: a key or `}`.
    FirstKey,
    /// After `,` in an object.
    NextKey,
    Colon,
    AfterValue,
    String,
    Escape,
    Hex {
        digits: u8,
        unit: u16,
    },
    Number(NumberState),
    Word {
        rest: &'static [u8],
        scalar: Scalar<'static>,
    },
    Complete,
    Failed,
}

/// Where in RFC 8259's number grammar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NumberState {
    Minus,
    Zero,
    Integer,
    Point,
    Fraction,
    Exponent,
    ExponentSign,
    ExponentDigits,
}

impl Default for ScanState {
    fn default() -> ScanState {
        ScanState::Start(0)
    }
}

// === impl Scanner ===

impl Scanner {
    /// Reads a piece. After a failure the rest is only counted.
    pub(super) fn push(&mut self, bytes: &[u8], sink: &mut impl Sink) {
        let mut rest = bytes;
        while let Some(&byte) = rest.first() {
            let step = match self.state {
                ScanState::Failed => Ok(rest.len()),
                ScanState::String => self.string_run(rest, sink),
                _ => self.step(byte, sink),
            };
            let used = step.unwrap_or_else(|failure| {
                self.failure = Some(failure);
                self.state = ScanState::Failed;
                0
            });
            rest = rest.get(used..).unwrap_or_default();
            self.offset += used as u64;
        }
        if self.want == Want::Pieces
            && matches!(self.state, ScanState::String | ScanState::Escape | ScanState::Hex { .. })
        {
            self.hand_over(sink);
        }
    }

    /// Says that nothing more comes.
    pub(super) fn finish(&mut self, sink: &mut impl Sink) -> Result<(), ScanFailure> {
        if let ScanState::Number(number) = self.state
            && number.is_complete()
            && self.depth == 0
        {
            self.number_end(sink);
        }
        match self.failure {
            Some(failure) => Err(failure),
            None if self.state == ScanState::Complete => Ok(()),
            None => Err(ScanFailure::Syntax { offset: self.offset }),
        }
    }

    /// Whether nothing but white space was read.
    pub(super) fn is_blank(&self) -> bool {
        self.depth == 0 && matches!(self.state, ScanState::Start(0) | ScanState::Value)
    }

    /// Bytes read so far.
    pub(super) fn bytes(&self) -> u64 {
        self.offset
    }

    /// Starts over, keeping the buffer.
    pub(super) fn reset(&mut self) {
        let mut token = std::mem::take(&mut self.token);
        token.clear();
        *self = Scanner { token, ..Scanner::default() };
    }

    fn syntax<T>(&self) -> Result<T, ScanFailure> {
        Err(ScanFailure::Syntax { offset: self.offset })
    }

    /// Reads one byte outside of a string's plain text. Returns how many bytes were used: none at the byte after a number.
    fn step(&mut self, byte: u8, sink: &mut impl Sink) -> Result<usize, ScanFailure> {
        let blank = matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
        match self.state {
            ScanState::Start(seen) => match (seen, byte) {
                (0, 0xEF) | (1, 0xBB) => self.state = ScanState::Start(seen + 1),
                (2, 0xBF) => self.state = ScanState::Value,
                (0, _) => {
                    self.state = ScanState::Value;
                    return Ok(0);
                }
                _ => return self.syntax(),
            },
            ScanState::Value
            | ScanState::FirstElement
            | ScanState::FirstKey
            | ScanState::NextKey
            | ScanState::Colon
                if blank => {}
            ScanState::AfterValue | ScanState::Complete if blank => {}
            ScanState::FirstElement if byte == b']' => self.close(sink),
            ScanState::Value | ScanState::FirstElement => self.value(byte, sink)?,
            ScanState::FirstKey if byte == b'}' => self.close(sink),
            ScanState::FirstKey | ScanState::NextKey if byte == b'"' => {
                self.is_key = true;
                self.string_start(Want::Whole);
            }
            ScanState::Colon if byte == b':' => self.state = ScanState::Value,
            ScanState::AfterValue => match (byte, self.in_object()) {
                (b',', true) => self.state = ScanState::NextKey,
                (b',', false) => self.state = ScanState::Value,
                (b'}', true) | (b']', false) => self.close(sink),
                _ => return self.syntax(),
            },
            ScanState::Escape => self.escape(byte, sink)?,
            ScanState::Hex { digits, unit } => {
                let Some(digit) = char::from(byte).to_digit(16) else { return self.syntax() };
                let unit = unit << 4 | digit as u16;
                if digits < 3 {
                    self.state = ScanState::Hex { digits: digits + 1, unit };
                } else {
                    self.state = ScanState::String;
                    self.utf16(unit, sink);
                }
            }
            ScanState::Number(NumberState::Minus) if byte == b'I' => {
                self.state = ScanState::Word { rest: b"nfinity", scalar: Scalar::Number("-Infinity") };
            }
            ScanState::Number(number) => match number.next(byte) {
                Some(next) => {
                    self.state = ScanState::Number(next);
                    self.keep(&[byte]);
                }
                None if number.is_complete() => {
                    self.number_end(sink);
                    return Ok(0);
                }
                None => return self.syntax(),
            },
            ScanState::Word { rest, scalar } => match rest.split_first() {
                Some((&expected, rest)) if expected == byte => {
                    self.state = ScanState::Word { rest, scalar };
                    if rest.is_empty() {
                        self.state = self.after_value();
                        sink.scalar(scalar, self.token_at..self.offset + 1);
                    }
                }
                _ => return self.syntax(),
            },
            ScanState::FirstKey | ScanState::NextKey | ScanState::Colon | ScanState::Complete => return self.syntax(),
            // Strings and failures do not come here.
            ScanState::String | ScanState::Failed => {}
        }
        Ok(1)
    }

    fn value(&mut self, byte: u8, sink: &mut impl Sink) -> Result<(), ScanFailure> {
        let word = |rest, scalar| ScanState::Word { rest, scalar };
        self.token_at = self.offset;
        self.state = match byte {
            b'{' => return self.open(Container::Object, sink),
            b'[' => return self.open(Container::Array, sink),
            b'"' => {
                self.is_key = false;
                self.string_start(sink.string());
                return Ok(());
            }
            b'-' => ScanState::Number(NumberState::Minus),
            b'0' => ScanState::Number(NumberState::Zero),
            b'1'..=b'9' => ScanState::Number(NumberState::Integer),
            b't' => word(b"rue", Scalar::Bool(true)),
            b'f' => word(b"alse", Scalar::Bool(false)),
            b'n' => word(b"ull", Scalar::Null),
            b'N' => word(b"aN", Scalar::Number("NaN")),
            b'I' => word(b"nfinity", Scalar::Number("Infinity")),
            _ => return self.syntax(),
        };
        self.clear_token();
        self.keep(&[byte]);
        Ok(())
    }

    fn after_value(&self) -> ScanState {
        if self.depth == 0 { ScanState::Complete } else { ScanState::AfterValue }
    }

    fn number_end(&mut self, sink: &mut impl Sink) {
        self.state = self.after_value();
        let written = if self.token_cut { "" } else { str::from_utf8(&self.token).unwrap_or_default() };
        sink.scalar(Scalar::Number(written), self.token_at..self.offset);
    }

    fn open(&mut self, container: Container, sink: &mut impl Sink) -> Result<(), ScanFailure> {
        let Some(bits) = self.objects.get_mut(self.depth / 64) else { return Err(ScanFailure::TooDeep) };
        let bit = 1 << (self.depth % 64);
        self.depth += 1;
        match container {
            Container::Object => {
                *bits |= bit;
                self.state = ScanState::FirstKey;
            }
            Container::Array => {
                *bits &= !bit;
                self.state = ScanState::FirstElement;
            }
        }
        sink.open(container, self.offset);
        Ok(())
    }

    fn close(&mut self, sink: &mut impl Sink) {
        self.depth = self.depth.saturating_sub(1);
        self.state = self.after_value();
        sink.close(self.offset + 1);
    }

    fn in_object(&self) -> bool {
        let level = self.depth.saturating_sub(1);
        self.objects.get(level / 64).is_some_and(|bits| bits >> (level % 64) & 1 == 1)
    }

    // --- strings ---

    fn string_start(&mut self, want: Want) {
        self.token_at = self.offset;
        self.clear_token();
        self.want = want;
        self.state = ScanState::String;
    }

    /// Reads plain text up to the end of the string, an escape, or the end of the piece. Returns how many bytes were used.
    fn string_run(&mut self, rest: &[u8], sink: &mut impl Sink) -> Result<usize, ScanFailure> {
        let length = plain_length(rest);
        let (run, after) = rest.split_at_checked(length).unwrap_or((rest, &[]));
        if !run.is_empty() {
            self.run(run, sink);
        }
        match after.first() {
            None => Ok(length),
            Some(b'"') => {
                self.string_end(self.offset + length as u64 + 1, sink);
                Ok(length + 1)
            }
            Some(b'\\') => {
                self.state = ScanState::Escape;
                Ok(length + 1)
            }
            Some(_) => Err(ScanFailure::Syntax { offset: self.offset + length as u64 }),
        }
    }

    fn string_end(&mut self, end: u64, sink: &mut impl Sink) {
        self.end_surrogate(sink);
        if self.want == Want::Pieces {
            self.hand_over(sink);
            if !std::mem::take(&mut self.split_char).is_empty() {
                sink.text("\u{FFFD}");
            }
        }
        let text = String::from_utf8_lossy(&self.token);
        if self.is_key {
            self.state = ScanState::Colon;
            sink.key(&text);
        } else {
            self.state = self.after_value();
            sink.string_end(Kept { text: &text, cut: self.token_cut }, self.token_at..end);
        }
    }

    /// Takes text that stands as it is.
    fn run(&mut self, run: &[u8], sink: &mut impl Sink) {
        self.end_surrogate(sink);
        self.put(run, sink);
    }

    fn escape(&mut self, byte: u8, sink: &mut impl Sink) -> Result<(), ScanFailure> {
        let character = match byte {
            b'"' => "\"",
            b'\\' => "\\",
            b'/' => "/",
            b'b' => "\u{8}",
            b'f' => "\u{c}",
            b'n' => "\n",
            b'r' => "\r",
            b't' => "\t",
            b'u' => {
                self.state = ScanState::Hex { digits: 0, unit: 0 };
                return Ok(());
            }
            _ => return self.syntax(),
        };
        self.state = ScanState::String;
        self.end_surrogate(sink);
        self.put(character.as_bytes(), sink);
        Ok(())
    }

    fn utf16(&mut self, unit: u16, sink: &mut impl Sink) {
        if let Some(high) = self.high_surrogate
            && let Some(Ok(character)) = char::decode_utf16([high, unit]).next()
        {
            self.high_surrogate = None;
            return self.put(character.encode_utf8(&mut [0; 4]).as_bytes(), sink);
        }
        self.end_surrogate(sink);
        match char::from_u32(unit.into()) {
            Some(character) => self.put(character.encode_utf8(&mut [0; 4]).as_bytes(), sink),
            None if unit < 0xDC00 => self.high_surrogate = Some(unit),
            None => self.put("\u{FFFD}".as_bytes(), sink),
        }
    }

    /// Half of a surrogate pair that nothing completed stands for no character.
    fn end_surrogate(&mut self, sink: &mut impl Sink) {
        if self.high_surrogate.take().is_some() {
            self.put("\u{FFFD}".as_bytes(), sink);
        }
    }

    fn put(&mut self, text: &[u8], sink: &mut impl Sink) {
        match self.want {
            Want::Nothing => {}
            Want::Whole => self.keep(text),
            Want::Pieces => {
                // Text full of escapes comes in crumbs, which are cheaper together.
                if self.token.len() + text.len() > TOKEN_BYTES_MAX {
                    self.hand_over(sink);
                }
                if text.len() > TOKEN_BYTES_MAX {
                    self.decode(text, sink);
                } else {
                    self.token.extend_from_slice(text);
                }
            }
        }
    }

    /// Gives the sink what was gathered of a string wanted in pieces.
    fn hand_over(&mut self, sink: &mut impl Sink) {
        let mut gathered = std::mem::take(&mut self.token);
        self.decode(&gathered, sink);
        gathered.clear();
        self.token = gathered;
    }

    fn decode(&mut self, mut bytes: &[u8], sink: &mut impl Sink) {
        while let (false, Some((&byte, rest))) = (self.split_char.is_empty(), bytes.split_first()) {
            let joined = self.split_char.followed_by(byte);
            self.split_char = SplitChar::default();
            match str::from_utf8(joined.bytes()) {
                Ok(character) => sink.text(character),
                Err(error) if error.error_len().is_none() => self.split_char = joined,
                Err(_) => {
                    sink.text("\u{FFFD}");
                    break;
                }
            }
            bytes = rest;
        }
        if let Ok(text) = str::from_utf8(bytes) {
            return sink.text(text);
        }
        let mut left = bytes.len();
        for chunk in bytes.utf8_chunks() {
            let invalid = chunk.invalid();
            left = left.saturating_sub(chunk.valid().len() + invalid.len());
            sink.text(chunk.valid());
            let is_incomplete = || str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
            if left == 0 && is_incomplete() {
                self.split_char = SplitChar::from_bytes(invalid);
            } else if !invalid.is_empty() {
                sink.text("\u{FFFD}");
            }
        }
    }

    // --- the token ---

    fn clear_token(&mut self) {
        self.token.clear();
        self.token_cut = false;
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = TOKEN_BYTES_MAX.saturating_sub(self.token.len());
        match bytes.get(..room) {
            Some(head) if head.len() < bytes.len() => {
                self.token.extend_from_slice(head);
                self.token_cut = true;
            }
            _ => self.token.extend_from_slice(bytes),
        }
    }
}

// === impl Number ===

impl NumberState {
    fn next(self, byte: u8) -> Option<NumberState> {
        match (self, byte) {
            (NumberState::Minus, b'0') => Some(NumberState::Zero),
            (NumberState::Minus, b'1'..=b'9') | (NumberState::Integer, b'0'..=b'9') => Some(NumberState::Integer),
            (NumberState::Zero | NumberState::Integer, b'.') => Some(NumberState::Point),
            (NumberState::Point | NumberState::Fraction, b'0'..=b'9') => Some(NumberState::Fraction),
            (NumberState::Zero | NumberState::Integer | NumberState::Fraction, b'e' | b'E') => {
                Some(NumberState::Exponent)
            }
            (NumberState::Exponent, b'+' | b'-') => Some(NumberState::ExponentSign),
            (NumberState::Exponent | NumberState::ExponentSign | NumberState::ExponentDigits, b'0'..=b'9') => {
                Some(NumberState::ExponentDigits)
            }
            _ => None,
        }
    }

    fn is_complete(self) -> bool {
        matches!(self, NumberState::Zero | NumberState::Integer | NumberState::Fraction | NumberState::ExponentDigits)
    }
}

/// What the open containers mean to a sink, as deep as they mean anything: deeper ones are `C::default()`.
#[derive(Clone, Debug, Default)]
pub(super) struct Levels<C> {
    known: [C; LEVELS_MAX],
    depth: usize,
}

impl<C: Copy + Default> Levels<C> {
    pub(super) fn push(&mut self, meaning: C) {
        if let Some(level) = self.known.get_mut(self.depth) {
            *level = meaning;
        }
        self.depth += 1;
    }

    pub(super) fn pop(&mut self) -> Option<C> {
        let innermost = self.innermost();
        self.depth = self.depth.saturating_sub(1);
        innermost
    }

    /// Whether the meaning of a container that begins now would still be remembered, and that of none within it.
    pub(super) fn is_last(&self) -> bool {
        self.depth.saturating_add(1) >= LEVELS_MAX
    }

    /// None outside of everything.
    pub(super) fn innermost(&self) -> Option<C> {
        let level = self.depth.checked_sub(1)?;
        Some(self.known.get(level).copied().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests;
