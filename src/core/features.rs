//! Prompt text to hashed slots and surface features; bounded work whatever the prompt's size.
//!
//! `models/features.py` implements the same rule for training, and `models/golden.json` holds both to it bit for bit. So
//! there are only integer counts, and one division and one square root per value: IEEE 754 rounds both correctly, so
//! Python, x86-64 and WebAssembly agree. No logarithm or exponential: those depend on the maths library.

mod window;
pub use window::{HEAD_CHARS, TAIL_CHARS, TextCount, TextWindow};

/// What the predictor's file fixes; the build script writes it.
mod shape {
    include!(concat!(env!("OUT_DIR"), "/predictor_shape.rs"));
}
use shape::SLOT_BITS;
pub(crate) use shape::TABLE_COLUMNS;

/// The rule's version; the predictor's file names the version that it was trained with.
pub const FEATURE_VERSION: u32 = 1;
/// Hashed slots for words and pairs of words; as many as the predictor's table has rows.
pub const SLOTS: usize = 1 << SLOT_BITS;
/// Number of surface features.
pub const SURFACE: usize = 32;

/// What the predictor reads of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    /// Slot below [`SLOTS`] and weight of every distinct slot, in order of first occurrence; the squares of the weights sum
    /// to 1.
    pub slots: Vec<(u16, f32)>,
    /// Lengths, shares of kinds of characters, and counts of telling words.
    pub surface: [f32; SURFACE],
}

/// The kind of an ASCII character; the order is that of [`Scan::kinds`].
#[derive(Clone, Copy)]
enum CharKind {
    Lower,
    Upper,
    Digit,
    Newline,
    Blank,
    Open,
    Close,
    Operator,
    Quote,
    Stop,
    Question,
    Markup,
    Symbol,
    NonAscii,
}
const KINDS: usize = 14;

const fn kind_of(byte: u8) -> CharKind {
    match byte {
        b'a'..=b'z' => CharKind::Lower,
        b'A'..=b'Z' => CharKind::Upper,
        b'0'..=b'9' => CharKind::Digit,
        b'\n' => CharKind::Newline,
        0..=b' ' | 0x7f => CharKind::Blank,
        b'(' | b'[' | b'{' => CharKind::Open,
        b')' | b']' | b'}' => CharKind::Close,
        b'+' | b'-' | b'*' | b'/' | b'=' | b'<' | b'>' | b'^' | b'%' => CharKind::Operator,
        b'\'' | b'"' | b'`' => CharKind::Quote,
        b'.' | b',' | b';' | b':' => CharKind::Stop,
        b'?' => CharKind::Question,
        b'\\' | b'$' => CharKind::Markup,
        128.. => CharKind::NonAscii,
        _ => CharKind::Symbol,
    }
}

/// The kind of every byte.
#[expect(clippy::indexing_slicing, reason = "evaluated by the compiler: a wrong index fails the build")]
const KIND_TABLE: [CharKind; 256] = {
    let mut table = [CharKind::Symbol; 256];
    let mut byte = 0;
    while byte < table.len() {
        table[byte] = kind_of(byte as u8);
        byte += 1;
    }
    table
};

const FNV_OFFSET: u32 = 0x811c_9dc5;
const FNV_PRIME: u32 = 0x0100_0193;

/// One byte of 32-bit FNV-1a.
const fn fnv1a(hash: u32, byte: u8) -> u32 {
    (hash ^ byte as u32).wrapping_mul(FNV_PRIME)
}

/// The top bits of Knuth's multiplicative hash.
const fn slot(hash: u32) -> u16 {
    (hash.wrapping_mul(2_654_435_761) >> (32 - SLOT_BITS)) as u16
}

/// Words that tell what a prompt asks for, by group; each group's count is one surface feature.
const KEYWORD_GROUPS: [&[&str]; 8] = [
    &["for", "while"],
    &["if", "elif", "else"],
    &["class", "def", "function", "import", "lambda", "return"],
    &["append", "dict", "join", "len", "list", "range", "replace", "sort", "split", "str", "string"],
    &["calculate", "compute", "determine", "evaluate", "find", "solve"],
    &[
        "angle",
        "circle",
        "equation",
        "integer",
        "integers",
        "polynomial",
        "positive",
        "probability",
        "prove",
        "real",
        "triangle",
    ],
    &["create", "describe", "explain", "generate", "implement", "summarize", "write"],
    &["how", "many", "much", "what", "when", "which", "who", "why"],
];
const KEYWORDS: usize = 54;
/// A power of two, four times as many as there are keywords: most words meet an empty place at once.
const KEYWORD_PLACES: usize = 256;

/// Hash and group of every keyword at the hash's low bits or the next free place; a hash of 0 is a free place.
#[expect(clippy::indexing_slicing, reason = "evaluated by the compiler: a wrong index fails the build")]
const KEYWORD_TABLE: [(u32, u8); KEYWORD_PLACES] = {
    let mut table = [(0, 0); KEYWORD_PLACES];
    let (mut group, mut filled) = (0, 0);
    while group < KEYWORD_GROUPS.len() {
        let mut word = 0;
        while word < KEYWORD_GROUPS[group].len() {
            let bytes = KEYWORD_GROUPS[group][word].as_bytes();
            let (mut hash, mut i) = (FNV_OFFSET, 0);
            while i < bytes.len() {
                hash = fnv1a(hash, bytes[i]);
                i += 1;
            }
            assert!(hash != 0);
            let mut at = hash as usize % KEYWORD_PLACES;
            while table[at].0 != 0 {
                at = (at + 1) % KEYWORD_PLACES;
            }
            table[at] = (hash, group as u8);
            filled += 1;
            word += 1;
        }
        group += 1;
    }
    assert!(filled == KEYWORDS);
    table
};

/// The group of a keyword, by its hash.
fn keyword_group(hash: u32) -> Option<usize> {
    // The table has free places, so this ends.
    (hash as usize % KEYWORD_PLACES..)
        .map_while(|at| KEYWORD_TABLE.get(at % KEYWORD_PLACES).filter(|keyword| keyword.0 != 0))
        .find(|keyword| keyword.0 == hash)
        .map(|keyword| usize::from(keyword.1))
}

/// Places for slots where a text is short.
const PLACES_MIN: usize = 64;

/// Weights of slots that occur up to so many times are computed once for all of them.
const COMMON_COUNTS: usize = 32;

/// The running state over the window's characters.
struct Scan {
    tokens: Tokens,
    kinds: [u32; KINDS],
    word_hash: u32,
    word_letters: u32,
    words: u32,
    long_words: u32,
    groups: [u32; KEYWORD_GROUPS.len()],
    digits_in_run: u32,
    longest_digits: u32,
    numbers: u32,
    line_chars: u32,
    longest_line: u32,
    indented_lines: u32,
    depth: u32,
    deepest: u32,
}

/// Words, digits and symbols, and pairs of them, by slot.
struct Tokens {
    /// Where in `slots` a slot stands, plus 1, at the slot's low bits or the next free place; 0 is a free place. At least half of the
    /// places are free: a table of all slots is longer than what most prompts need.
    places: Vec<u16>,
    /// Slots and their occurrences, in order of first occurrence.
    slots: Vec<(u16, u16)>,
    occurrences: u32,
    /// What the token before adds to the hash of a pair.
    previous: Option<u32>,
}

impl Scan {
    /// For a text of so many bytes.
    fn new(bytes: usize) -> Scan {
        Scan {
            tokens: Tokens::new(bytes),
            kinds: [0; KINDS],
            word_hash: FNV_OFFSET,
            word_letters: 0,
            words: 0,
            long_words: 0,
            groups: [0; KEYWORD_GROUPS.len()],
            digits_in_run: 0,
            longest_digits: 0,
            numbers: 0,
            line_chars: 0,
            longest_line: 0,
            indented_lines: 0,
            depth: 0,
            deepest: 0,
        }
    }

    // Counters cannot overflow: the window has at most HEAD_CHARS + TAIL_CHARS characters.
    fn text(&mut self, text: &str) {
        let mut rest = text.as_bytes();
        while let Some((&byte, after)) = rest.split_first() {
            let kind = KIND_TABLE.get(usize::from(byte)).copied().unwrap_or(CharKind::Symbol);
            if let CharKind::Lower | CharKind::Upper = kind {
                rest = self.letters(rest);
                continue;
            }
            rest = after;
            self.add(kind, 1);
            self.end_word();
            match kind {
                CharKind::Digit => {
                    self.digits_in_run += 1;
                    self.tokens.token(fnv1a(FNV_OFFSET, byte));
                    self.line_chars += 1;
                    continue;
                }
                CharKind::Newline => {
                    self.end_number();
                    self.end_line();
                    continue;
                }
                CharKind::Blank => {
                    self.indented_lines += u32::from(self.line_chars == 0 && (byte == b' ' || byte == b'\t'));
                }
                CharKind::NonAscii => {
                    let mut hash = fnv1a(FNV_OFFSET, byte);
                    while let Some((&next @ 0x80..0xc0, after)) = rest.split_first() {
                        hash = fnv1a(hash, next);
                        rest = after;
                    }
                    self.tokens.token(hash);
                }
                CharKind::Open => {
                    self.depth += 1;
                    self.deepest = self.deepest.max(self.depth);
                    self.tokens.token(fnv1a(FNV_OFFSET, byte));
                }
                _ => {
                    self.depth = self.depth.saturating_sub(u32::from(matches!(kind, CharKind::Close)));
                    self.tokens.token(fnv1a(FNV_OFFSET, byte));
                }
            }
            self.end_number();
            self.line_chars += 1;
        }
    }

    /// The letters that a text begins with; they may go on a word that began before. Returns what follows them.
    fn letters<'a>(&mut self, text: &'a [u8]) -> &'a [u8] {
        self.end_number();
        let (mut hash, mut letters, mut upper) = (self.word_hash, 0, 0);
        let mut rest = text;
        while let Some((&byte, after)) = rest.split_first() {
            let lower = byte | 0x20;
            if !lower.is_ascii_lowercase() {
                break;
            }
            hash = fnv1a(hash, lower);
            upper += u32::from(byte != lower);
            letters += 1;
            rest = after;
        }
        self.word_hash = hash;
        self.word_letters += letters;
        self.line_chars += letters;
        self.add(CharKind::Upper, upper);
        self.add(CharKind::Lower, letters - upper);
        rest
    }

    fn end_word(&mut self) {
        if self.word_letters == 0 {
            return;
        }
        let hash = self.word_hash;
        self.words += 1;
        self.long_words += u32::from(self.word_letters >= 8);
        self.word_letters = 0;
        self.word_hash = FNV_OFFSET;
        self.tokens.token(hash);
        if let Some(count) = keyword_group(hash).and_then(|group| self.groups.get_mut(group)) {
            *count += 1;
        }
    }

    fn end_number(&mut self) {
        if self.digits_in_run > 0 {
            self.numbers += 1;
            self.longest_digits = self.longest_digits.max(self.digits_in_run);
            self.digits_in_run = 0;
        }
    }

    fn end_line(&mut self) {
        self.longest_line = self.longest_line.max(self.line_chars);
        self.line_chars = 0;
    }

    fn add(&mut self, kind: CharKind, chars: u32) {
        if let Some(count) = self.kinds.get_mut(kind as usize) {
            *count += chars;
        }
    }

    fn kind(&self, kind: CharKind) -> u32 {
        self.kinds.get(kind as usize).copied().unwrap_or(0)
    }
}

impl Tokens {
    /// For a text of so many bytes: text of words has fewer slots than half of that, and other text may have more.
    fn new(bytes: usize) -> Tokens {
        let places = bytes.clamp(PLACES_MIN, 2 * SLOTS).next_power_of_two();
        Tokens { places: vec![0; places], slots: Vec::with_capacity(places / 2), occurrences: 0, previous: None }
    }

    fn token(&mut self, hash: u32) {
        self.count(slot(hash));
        let pair = self.previous.map(|previous| previous.wrapping_add(hash.wrapping_mul(1_000_003)));
        self.previous = Some(hash.wrapping_mul(31).wrapping_add(17));
        if let Some(pair) = pair {
            self.count(slot(pair));
        }
    }

    #[inline(always)]
    fn count(&mut self, slot: u16) {
        self.occurrences += 1;
        let mask = self.places.len().wrapping_sub(1);
        let mut at = usize::from(slot) & mask;
        // There are free places, so this ends.
        while let Some(place) = self.places.get_mut(at) {
            if *place == 0 {
                self.slots.push((slot, 1));
                *place = self.slots.len() as u16;
                return self.keep_half_free();
            }
            match self.slots.get_mut(usize::from(*place) - 1) {
                Some((other, count)) if *other == slot => return *count += 1,
                _ => at = (at + 1) & mask,
            }
        }
    }

    /// Twice as many places, once half of them are taken.
    #[inline]
    fn keep_half_free(&mut self) {
        if self.slots.len() * 2 <= self.places.len() {
            return;
        }
        let places = self.places.len() * 2;
        self.places.clear();
        self.places.resize(places, 0);
        for (number, (slot, _)) in (1..).zip(&self.slots) {
            let mut at = usize::from(*slot) & (places - 1);
            while self.places.get(at).is_some_and(|place| *place != 0) {
                at = (at + 1) & (places - 1);
            }
            if let Some(place) = self.places.get_mut(at) {
                *place = number;
            }
        }
    }

    /// Each slot with its weight: the square root of its share of all occurrences.
    fn weighted(self) -> Vec<(u16, f32)> {
        let total = f64::from(self.occurrences);
        let weight = |count: u16| (f64::from(count) / total).sqrt() as f32;
        let mut common = [0.0; COMMON_COUNTS];
        let weighted = self.slots.into_iter().map(|(slot, count)| {
            let slot_weight = match common.get_mut(usize::from(count)) {
                None => weight(count),
                Some(known) => {
                    if *known == 0.0 {
                        *known = weight(count);
                    }
                    *known
                }
            };
            (slot, slot_weight)
        });
        weighted.collect()
    }
}

/// log2(1 + n), linear between powers of two: exact, where a logarithm depends on the maths library.
fn log2(n: u64) -> f32 {
    let n = n.saturating_add(1);
    let k = n.ilog2();
    (f64::from(k) + n as f64 / (1_u64 << k) as f64 - 1.0) as f32
}

fn share(part: u32, whole: u32) -> f32 {
    part as f32 / whole.max(1) as f32
}

/// The features of a text; at most [`HEAD_CHARS`] + [`TAIL_CHARS`] characters are looked at.
pub fn extract(window: &TextWindow) -> Features {
    let (head, tail) = (window.head(), window.tail());
    let mut scan = Scan::new(head.len() + tail.len());
    scan.text(head);
    scan.text(tail);
    scan.end_word();
    scan.end_number();
    scan.end_line();

    let classes = window.counts();
    let (distinct, occurrences) = (scan.tokens.slots.len() as u32, scan.tokens.occurrences);
    let chars = scan.kinds.iter().sum();
    let letters = scan.kind(CharKind::Lower) + scan.kind(CharKind::Upper);
    let newlines = scan.kind(CharKind::Newline);
    let count = |n: u32| log2(u64::from(n));
    let [loops, branches, declarations, methods, asks, maths, writing, questions] = scan.groups;
    let surface = [
        log2(classes.chars()),
        log2(classes.estimated_tokens()),
        count(scan.words),
        count(newlines),
        count(distinct),
        share(distinct, occurrences),
        share(letters, chars),
        share(scan.kind(CharKind::Upper), letters),
        share(scan.kind(CharKind::Digit), chars),
        share(scan.kind(CharKind::Blank) + newlines, chars),
        share(scan.kind(CharKind::NonAscii), chars),
        share(scan.kind(CharKind::Open) + scan.kind(CharKind::Close), chars),
        share(scan.kind(CharKind::Operator), chars),
        share(scan.kind(CharKind::Quote), chars),
        share(scan.kind(CharKind::Stop), chars),
        count(scan.kind(CharKind::Question)),
        count(scan.kind(CharKind::Markup)),
        share(letters, scan.words),
        share(scan.long_words, scan.words),
        count(scan.numbers),
        count(scan.longest_digits),
        count(scan.longest_line),
        share(scan.indented_lines, newlines + 1),
        scan.deepest.min(255) as f32,
        count(loops),
        count(branches),
        count(declarations),
        count(methods),
        count(asks),
        count(maths),
        count(writing),
        count(questions),
    ];
    Features { slots: scan.tokens.weighted(), surface }
}

#[cfg(test)]
mod tests {
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    pub(super) fn window(text: &str) -> TextWindow {
        let mut window = TextWindow::default();
        window.push_str(text);
        window
    }

    /// A small generator (xorshift64): the same numbers on every target.
    fn random(state: &mut u64) -> u64 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    }

    pub(super) fn random_text(state: &mut u64, chars: usize) -> String {
        const PIECES: [&str; 16] =
            ["a", "B", "z", " ", "\n", "\t", "7", "0", "(", "}", "é", "漢", "🦀", "\0", "def ", "What is 12?"];
        (0..chars).map(|_| PIECES[(random(state) % PIECES.len() as u64) as usize]).collect()
    }

    #[test]
    fn how_a_text_is_cut_into_pieces_does_not_matter() {
        let mut state = 7;
        for chars in [0, 1, 5, 100, 3_999, 4_000, 4_001, 5_000, 6_001, 30_000] {
            let text = random_text(&mut state, chars);
            let whole = window(&text);
            for longest in [1, 3, 1_000, 9_000] {
                let mut pieces = TextWindow::default();
                let mut rest = text.as_str();
                while !rest.is_empty() {
                    let piece = 1 + random(&mut state) as usize % longest;
                    let at = rest.char_indices().nth(piece).map_or(rest.len(), |(at, _)| at);
                    pieces.push_str(&rest[..at]);
                    rest = &rest[at..];
                }
                assert_eq!(pieces.chars(), text.chars().count() as u64);
                assert_eq!(pieces.counts(), whole.counts(), "{chars} chars in pieces of up to {longest}");
                assert_eq!(extract(&pieces), extract(&whole), "{chars} chars in pieces of up to {longest}");
            }
        }
    }

    #[test]
    fn weights_are_a_unit_vector_and_features_are_finite() {
        let mut state = 13;
        for chars in [1, 2, 50, 2_000, 20_000] {
            let text = format!("word {}", random_text(&mut state, chars));
            let features = extract(&window(&text));
            let norm: f32 = features.slots.iter().map(|(_, weight)| weight * weight).sum();
            assert!((norm - 1.0).abs() < 1e-4, "{norm}");
            assert!(features.slots.iter().all(|(slot, _)| usize::from(*slot) < SLOTS));
            assert!(features.surface.iter().all(|x| x.is_finite() && *x >= 0.0));
        }
    }
}
