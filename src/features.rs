//! Prompt text to hashed slots and surface features; bounded work whatever the prompt's size.
//!
//! `models/features.py` implements the same rule for training, and `models/golden.json` holds both to it bit for bit. So
//! there are only integer counts, and one division and one square root per value: IEEE 754 rounds both correctly, so
//! Python, x86-64 and WebAssembly agree. No logarithm or exponential: those depend on the maths library.

/// The rule's version; the predictor's file names the version that it was trained with.
pub const FEATURE_VERSION: u32 = 1;
/// Characters kept from the start of the text.
pub const HEAD_CHARS: usize = 4_000;
/// Characters kept from the end of the text.
pub const TAIL_CHARS: usize = 2_000;
/// Hashed slots for words and pairs of words.
pub const SLOTS: usize = 4_096;
/// Number of surface features.
pub const SURFACE: usize = 32;

/// Tokens per 1,000 occurrences of each class in the text, fitted by `models/fit_tokens.py` against Qwen2.5's tokenizer on
/// 17,945 prompts (median error 3.8 %, P90 10.4 %).
const LETTER_MILLIS: u64 = 7;
const WORD_MILLIS: u64 = 698;
const DIGIT_MILLIS: u64 = 1_225;
const SPACE_MILLIS: u64 = 368;
const NEWLINE_MILLIS: u64 = 0;
const SYMBOL_MILLIS: u64 = 651;
const TWO_BYTE_MILLIS: u64 = 891;
const THREE_BYTE_MILLIS: u64 = 1_014;
const FOUR_BYTE_MILLIS: u64 = 1_112;

/// What the predictor reads of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    /// Slot below [`SLOTS`] and weight of every distinct slot, in order of first occurrence; the squares of the weights sum
    /// to 1.
    pub slots: Vec<(u16, f32)>,
    /// Lengths, shares of kinds of characters, and counts of telling words.
    pub surface: [f32; SURFACE],
}

/// A bounded view of a prompt's text: its first [`HEAD_CHARS`] and last [`TAIL_CHARS`] characters, and counts over all of it.
#[derive(Clone, Debug, Default)]
pub struct TextWindow {
    head: String,
    head_chars: usize,
    /// Ends with the last [`TAIL_CHARS`] characters after the head; what precedes them is cut off from time to time.
    tail: String,
    /// Counts over all of the text but `uncounted`, which follows it: a JSON string comes in many short pieces, one per escape.
    classes: CharacterClasses,
    uncounted: String,
}

/// Bytes that are worth counting in one go.
const COUNT_BYTES: usize = 2_048;

impl TextWindow {
    /// Appends a piece of text; pieces may be cut anywhere between characters.
    pub fn push_str(&mut self, text: &str) {
        if self.uncounted.len().saturating_add(text.len()) <= COUNT_BYTES {
            self.uncounted.push_str(text);
        } else {
            self.classes.count(self.uncounted.as_bytes());
            self.uncounted.clear();
            self.classes.count(text.as_bytes());
        }

        let room = HEAD_CHARS.saturating_sub(self.head_chars);
        let (for_head, rest) = split_after(text, room);
        if !for_head.is_empty() {
            self.head.push_str(for_head);
            self.head_chars = self.head_chars.saturating_add(for_head.chars().count());
        }
        self.tail.push_str(last_chars(rest));
        // A character has at most 4 bytes, so half of this buffer always holds the tail, and cutting is rare.
        if self.tail.len() > 8 * TAIL_CHARS {
            self.tail = last_chars(&self.tail).to_owned();
        }
    }

    /// Characters seen so far, kept or not.
    pub fn chars(&self) -> u64 {
        self.counts().chars()
    }

    /// Estimated tokens of all the text seen so far.
    pub fn estimated_tokens(&self) -> u64 {
        self.counts().estimated_tokens()
    }

    fn counts(&self) -> CharacterClasses {
        let mut classes = self.classes.clone();
        classes.count(self.uncounted.as_bytes());
        classes
    }
}

/// The first `chars` characters, and what follows them.
fn split_after(text: &str, chars: usize) -> (&str, &str) {
    // No character is shorter than a byte.
    if text.len() <= chars {
        return (text, "");
    }
    let at = match text.as_bytes().get(..chars) {
        Some(ascii) if ascii.is_ascii() => Some(chars),
        _ => text.char_indices().nth(chars).map(|(at, _)| at),
    };
    at.and_then(|at| text.split_at_checked(at)).unwrap_or((text, ""))
}

/// The last [`TAIL_CHARS`] characters.
fn last_chars(text: &str) -> &str {
    let Some(short) = text.len().checked_sub(TAIL_CHARS) else { return text };
    let at = match text.as_bytes().get(short..) {
        Some(ascii) if ascii.is_ascii() => Some(short),
        _ => text.char_indices().nth_back(TAIL_CHARS - 1).map(|(at, _)| at),
    };
    at.and_then(|at| text.get(at..)).unwrap_or(text)
}

/// How many characters of each class a text has, counted eight bytes at a time: a prompt may be a megabyte.
#[derive(Clone, Debug, Default, PartialEq)]
struct CharacterClasses {
    bytes: u64,
    letters: u64,
    /// Runs of ASCII letters.
    words: u64,
    digits: u64,
    /// Control characters and space.
    spaces_and_newlines: u64,
    newlines: u64,
    continuations: u64,
    leads: u64,
    leads_of_3_or_4: u64,
    leads_of_4: u64,
    ends_in_letter: bool,
}

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = 0x8080_8080_8080_8080;

const EVEN: u64 = 0x00ff_00ff_00ff_00ff;
const EVEN_ONES: u64 = 0x0001_0001_0001_0001;

/// The high bit of every byte that is at least `low`; the bytes of `x` are below 128.
const fn at_least(x: u64, low: u8) -> u64 {
    x.wrapping_add(ONES.wrapping_mul(128 - low as u64)) & HIGH
}

/// Classes counted per byte lane.
const CLASSES: usize = 9;

impl CharacterClasses {
    fn count(&mut self, bytes: &[u8]) {
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
        let (words, rest) = bytes.as_chunks::<8>();
        let mut lanes = [0; CLASSES];
        // A lane holds up to 255: one place is for the last, partial word.
        for block in words.chunks(254) {
            self.flush(&mut lanes);
            for word in block {
                self.add(&mut lanes, u64::from_le_bytes(*word));
            }
        }
        if let Some(last) = rest.last() {
            // The padding looks like continuation bytes, which are taken off again.
            let mut word = [0x80; 8];
            for (to, from) in word.iter_mut().zip(rest) {
                *to = *from;
            }
            self.add(&mut lanes, u64::from_le_bytes(word));
            self.ends_in_letter = last.is_ascii_alphabetic();
            self.flush(&mut lanes);
            self.continuations = self.continuations.saturating_sub(8 - rest.len() as u64);
        } else {
            self.flush(&mut lanes);
        }
    }

    fn add(&mut self, lanes: &mut [u64; CLASSES], word: u64) {
        let ascii = !word & HIGH;
        let low = word & !HIGH;
        let folded = low | (ONES * 0x20);
        let letter = at_least(folded, b'a') & !at_least(folded, b'z' + 1) & ascii;
        let before = (letter << 8) | if self.ends_in_letter { 0x80 } else { 0 };
        let lead = word & (word << 1) & HIGH;
        let lead_of_3_or_4 = lead & (word << 2);
        let found = [
            letter,
            letter & !before,
            at_least(low, b'0') & !at_least(low, b'9' + 1) & ascii,
            !at_least(low, b' ' + 1) & ascii,
            at_least(low, b'\n') & !at_least(low, b'\n' + 1) & ascii,
            word & !(word << 1) & HIGH,
            lead,
            lead_of_3_or_4,
            lead_of_3_or_4 & (word << 3),
        ];
        for (lane, found) in lanes.iter_mut().zip(found) {
            *lane = lane.wrapping_add(found >> 7);
        }
        self.ends_in_letter = letter >> 63 == 1;
    }

    /// Adds the lanes to the totals and empties them.
    fn flush(&mut self, lanes: &mut [u64; CLASSES]) {
        let totals = [
            &mut self.letters,
            &mut self.words,
            &mut self.digits,
            &mut self.spaces_and_newlines,
            &mut self.newlines,
            &mut self.continuations,
            &mut self.leads,
            &mut self.leads_of_3_or_4,
            &mut self.leads_of_4,
        ];
        for (total, lane) in totals.into_iter().zip(lanes) {
            let pairs = (*lane & EVEN) + (*lane >> 8 & EVEN);
            *total = total.saturating_add(pairs.wrapping_mul(EVEN_ONES) >> 48);
            *lane = 0;
        }
    }

    fn chars(&self) -> u64 {
        self.bytes.saturating_sub(self.continuations)
    }

    fn estimated_tokens(&self) -> u64 {
        let ascii = self.chars().saturating_sub(self.leads);
        let known = self.letters.saturating_add(self.digits).saturating_add(self.spaces_and_newlines);
        let millis = [
            (self.letters, LETTER_MILLIS),
            (self.words, WORD_MILLIS),
            (self.digits, DIGIT_MILLIS),
            (self.spaces_and_newlines.saturating_sub(self.newlines), SPACE_MILLIS),
            (self.newlines, NEWLINE_MILLIS),
            (ascii.saturating_sub(known), SYMBOL_MILLIS),
            (self.leads.saturating_sub(self.leads_of_3_or_4), TWO_BYTE_MILLIS),
            (self.leads_of_3_or_4.saturating_sub(self.leads_of_4), THREE_BYTE_MILLIS),
            (self.leads_of_4, FOUR_BYTE_MILLIS),
        ];
        let sum = millis.iter().fold(500_u64, |sum, (count, each)| sum.saturating_add(count.saturating_mul(*each)));
        sum / 1_000
    }
}

/// The kind of an ASCII character; the order is that of [`Scan::kinds`].
#[derive(Clone, Copy)]
enum Kind {
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

const fn kind_of(byte: u8) -> Kind {
    match byte {
        b'a'..=b'z' => Kind::Lower,
        b'A'..=b'Z' => Kind::Upper,
        b'0'..=b'9' => Kind::Digit,
        b'\n' => Kind::Newline,
        0..=b' ' | 0x7f => Kind::Blank,
        b'(' | b'[' | b'{' => Kind::Open,
        b')' | b']' | b'}' => Kind::Close,
        b'+' | b'-' | b'*' | b'/' | b'=' | b'<' | b'>' | b'^' | b'%' => Kind::Operator,
        b'\'' | b'"' | b'`' => Kind::Quote,
        b'.' | b',' | b';' | b':' => Kind::Stop,
        b'?' => Kind::Question,
        b'\\' | b'$' => Kind::Markup,
        128.. => Kind::NonAscii,
        _ => Kind::Symbol,
    }
}

/// The kind of every byte.
#[expect(clippy::indexing_slicing, reason = "evaluated by the compiler: a wrong index fails the build")]
const KIND_TABLE: [Kind; 256] = {
    let mut table = [Kind::Symbol; 256];
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

/// The top 12 bits of Knuth's multiplicative hash.
const fn slot(hash: u32) -> u16 {
    (hash.wrapping_mul(2_654_435_761) >> 20) as u16
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

/// Hash and group of every keyword, by hash.
#[expect(clippy::indexing_slicing, reason = "evaluated by the compiler: a wrong index fails the build")]
const KEYWORD_TABLE: [(u32, u8); KEYWORDS] = {
    let mut table = [(0, 0); KEYWORDS];
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
            let mut at = filled;
            while at > 0 && table[at - 1].0 > hash {
                table[at] = table[at - 1];
                at -= 1;
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

/// The running state over the window's characters.
struct Scan {
    /// Occurrences of each slot.
    counts: Box<[u16; SLOTS]>,
    /// Slots in order of first occurrence.
    order: Vec<u16>,
    occurrences: u32,
    previous: Option<u32>,
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

impl Scan {
    fn new(capacity: usize) -> Scan {
        Scan {
            counts: Box::new([0; SLOTS]),
            order: Vec::with_capacity(capacity.min(SLOTS)),
            occurrences: 0,
            previous: None,
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
        let mut at = 0;
        while let Some(&byte) = text.as_bytes().get(at) {
            let kind = KIND_TABLE.get(usize::from(byte)).copied().unwrap_or(Kind::Symbol);
            if let Some(count) = self.kinds.get_mut(kind as usize) {
                *count += 1;
            }
            at += 1;
            match kind {
                Kind::Lower | Kind::Upper => {
                    self.end_number();
                    self.word_hash = fnv1a(self.word_hash, byte | 0x20);
                    self.word_letters += 1;
                }
                Kind::Digit => {
                    self.end_word();
                    self.digits_in_run += 1;
                    self.token(fnv1a(FNV_OFFSET, byte));
                }
                Kind::Newline => {
                    self.end_word();
                    self.end_number();
                    self.end_line();
                    continue;
                }
                Kind::Blank => {
                    self.end_word();
                    self.end_number();
                    self.indented_lines += u32::from(self.line_chars == 0 && (byte == b' ' || byte == b'\t'));
                }
                Kind::NonAscii => {
                    self.end_word();
                    self.end_number();
                    let mut hash = fnv1a(FNV_OFFSET, byte);
                    while let Some(&next @ 0x80..0xc0) = text.as_bytes().get(at) {
                        hash = fnv1a(hash, next);
                        at += 1;
                    }
                    self.token(hash);
                }
                symbol => {
                    self.end_word();
                    self.end_number();
                    match symbol {
                        Kind::Open => self.depth += 1,
                        Kind::Close => self.depth = self.depth.saturating_sub(1),
                        _ => {}
                    }
                    self.deepest = self.deepest.max(self.depth);
                    self.token(fnv1a(FNV_OFFSET, byte));
                }
            }
            self.line_chars += 1;
        }
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
        self.token(hash);
        let group = KEYWORD_TABLE.binary_search_by_key(&hash, |keyword| keyword.0);
        let group = group.ok().and_then(|at| KEYWORD_TABLE.get(at)).map(|keyword| usize::from(keyword.1));
        if let Some(count) = group.and_then(|group| self.groups.get_mut(group)) {
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

    fn token(&mut self, hash: u32) {
        self.count(slot(hash));
        if let Some(previous) = self.previous.replace(hash) {
            let pair = previous.wrapping_mul(31).wrapping_add(hash.wrapping_mul(1_000_003)).wrapping_add(17);
            self.count(slot(pair));
        }
    }

    fn count(&mut self, slot: u16) {
        if let Some(count) = self.counts.get_mut(usize::from(slot)) {
            if *count == 0 {
                self.order.push(slot);
            }
            *count += 1;
            self.occurrences += 1;
        }
    }

    fn kind(&self, kind: Kind) -> u32 {
        self.kinds.get(kind as usize).copied().unwrap_or(0)
    }

    /// Each slot's weight: the square root of its share of all occurrences.
    fn weights(&self) -> Vec<(u16, f32)> {
        let count = |slot: &u16| self.counts.get(usize::from(*slot)).copied().unwrap_or(0);
        let total = f64::from(self.occurrences);
        let weight = |count: u16| (f64::from(count) / total).sqrt() as f32;
        // Most slots occur once: their weight is computed once.
        let once = weight(1);
        let pair = |slot: &u16| match count(slot) {
            1 => (*slot, once),
            more => (*slot, weight(more)),
        };
        self.order.iter().map(pair).collect()
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
    let tail = last_chars(&window.tail);
    let mut scan = Scan::new((window.head.len() + tail.len()) / 2);
    scan.text(&window.head);
    scan.text(tail);
    scan.end_word();
    scan.end_number();
    scan.end_line();

    let classes = window.counts();
    let slots = scan.weights();
    let chars = scan.kinds.iter().sum();
    let letters = scan.kind(Kind::Lower) + scan.kind(Kind::Upper);
    let newlines = scan.kind(Kind::Newline);
    let distinct = scan.order.len() as u32;
    let count = |n: u32| log2(u64::from(n));
    let [loops, branches, declarations, methods, asks, maths, writing, questions] = scan.groups;
    let surface = [
        log2(classes.chars()),
        log2(classes.estimated_tokens()),
        count(scan.words),
        count(newlines),
        count(distinct),
        share(distinct, scan.occurrences),
        share(letters, chars),
        share(scan.kind(Kind::Upper), letters),
        share(scan.kind(Kind::Digit), chars),
        share(scan.kind(Kind::Blank) + newlines, chars),
        share(scan.kind(Kind::NonAscii), chars),
        share(scan.kind(Kind::Open) + scan.kind(Kind::Close), chars),
        share(scan.kind(Kind::Operator), chars),
        share(scan.kind(Kind::Quote), chars),
        share(scan.kind(Kind::Stop), chars),
        count(scan.kind(Kind::Question)),
        count(scan.kind(Kind::Markup)),
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
    Features { slots, surface }
}

#[cfg(test)]
mod tests {
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    fn window(text: &str) -> TextWindow {
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

    fn random_text(state: &mut u64, chars: usize) -> String {
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
    fn only_head_and_tail_are_kept() {
        let long = format!("{}{}{}", "h".repeat(HEAD_CHARS), "dropped ".repeat(100_000), "t".repeat(TAIL_CHARS));
        let kept = window(&long);
        assert!(kept.head.len() + kept.tail.len() <= 8 * TAIL_CHARS + HEAD_CHARS);
        assert_eq!(
            extract(&kept).slots,
            extract(&window(&format!("{}{}", "h".repeat(4_000), "t".repeat(2_000)))).slots
        );
        assert_eq!(kept.chars(), 806_000);
    }

    #[test]
    fn classes_counted_by_the_word_equal_those_counted_by_the_character() {
        let mut state = 11;
        for chars in 0..300 {
            let text = random_text(&mut state, chars);
            let count = |of: &dyn Fn(char) -> bool| text.chars().filter(|c| of(*c)).count() as u64;
            let classes = window(&text).counts();
            let words = text.split(|c: char| !c.is_ascii_alphabetic()).filter(|word| !word.is_empty()).count() as u64;
            assert_eq!(classes.letters, count(&|c| c.is_ascii_alphabetic()), "{text:?}");
            assert_eq!(classes.words, words, "{text:?}");
            assert_eq!(classes.digits, count(&|c| c.is_ascii_digit()), "{text:?}");
            assert_eq!(classes.spaces_and_newlines, count(&|c| c <= ' '), "{text:?}");
            assert_eq!(classes.newlines, count(&|c| c == '\n'), "{text:?}");
            assert_eq!(classes.leads, count(&|c| !c.is_ascii()), "{text:?}");
            assert_eq!(classes.leads_of_3_or_4, count(&|c| c.len_utf8() >= 3), "{text:?}");
            assert_eq!(classes.leads_of_4, count(&|c| c.len_utf8() == 4), "{text:?}");
            assert_eq!(classes.chars(), text.chars().count() as u64, "{text:?}");
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
