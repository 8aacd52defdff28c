//! How many tokens a text has, estimated while it comes, from what kinds of characters follow each other in it.
//!
//! A tokenizer of the GPT kind first splits a text into words, numbers, runs of punctuation and runs of blanks, and then cuts each
//! into the pieces it knows. What a script costs per word, and per letter further into a word, is fitted against `o200k_base`. Only
//! the last character's kind and the length of its run are kept, so it does not matter where the text is cut.

use std::ops::RangeInclusive;

/// Writing systems that differ in what a letter costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Script {
    /// A to Z.
    Latin,
    /// Other letters of Latin alphabets.
    LatinExtended,
    Cyrillic,
    Greek,
    Arabic,
    Hebrew,
    Devanagari,
    Thai,
    Kana,
    Katakana,
    Han,
    Hangul,
    /// Any other.
    Foreign,
}

/// What a character is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum TokenKind {
    Letter(Script),
    Digit,
    #[default]
    Newline,
    Space,
    /// ASCII punctuation.
    Mark,
    /// Other punctuation and symbols.
    WideMark,
    /// A pictograph.
    Emoji,
    /// What changes the pictograph before it: a colour, a joiner, a variant.
    Modifier,
}

/// What is counted; [`millis`] says what each costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Feature {
    LatinWord,
    LatinLonger,
    LatinLong,
    LatinCapital,
    LatinExtended,
    CyrillicWord,
    CyrillicLetter,
    GreekWord,
    GreekLetter,
    ArabicWord,
    ArabicLetter,
    HebrewWord,
    HebrewLetter,
    DevanagariWord,
    DevanagariLetter,
    ThaiLetter,
    KanaLetter,
    KatakanaLetter,
    HanLetter,
    /// A Chinese character near to kana.
    KanjiLetter,
    HangulWord,
    HangulLetter,
    ForeignLetter,
    /// Up to three digits.
    Digits,
    /// Two or more blanks.
    Indent,
    /// A line's end that is not right behind punctuation.
    Newline,
    /// Punctuation behind something else.
    MarkFirst,
    /// More of it.
    MarkMore,
    WideMark,
    Emoji,
    OldEmoji,
    Modifier,
}

/// What each feature costs, in thousandths of a token. Fitted on the texts of `tests/fixtures/texts/fit.txt` by least squares of
/// the relative error, and rounded up where those texts have too few: katakana, digits, runs of punctuation.
const fn millis(feature: Feature) -> u64 {
    match feature {
        Feature::LatinWord => 753,
        Feature::LatinLonger => 288,
        Feature::LatinLong => 340,
        Feature::LatinCapital => 48,
        Feature::LatinExtended => 1292,
        Feature::CyrillicWord => 1126,
        Feature::CyrillicLetter => 100,
        Feature::GreekWord => 1455,
        Feature::GreekLetter => 133,
        Feature::ArabicWord => 456,
        Feature::ArabicLetter => 233,
        Feature::HebrewWord => 272,
        Feature::HebrewLetter => 387,
        Feature::DevanagariWord => 352,
        Feature::DevanagariLetter => 259,
        Feature::ThaiLetter => 425,
        Feature::KanaLetter => 747,
        Feature::KatakanaLetter => 300,
        Feature::HanLetter => 748,
        Feature::KanjiLetter => 907,
        Feature::HangulWord => 1531,
        Feature::HangulLetter => 217,
        Feature::ForeignLetter => 600,
        Feature::Digits => 900,
        Feature::Indent => 1014,
        Feature::Newline => 1075,
        Feature::MarkFirst => 956,
        Feature::MarkMore => 50,
        Feature::WideMark => 1342,
        Feature::Emoji => 2103,
        Feature::OldEmoji => 1588,
        Feature::Modifier => 943,
    }
}

/// Scripts by their ranges of characters, in order.
const RANGES: &[(RangeInclusive<u32>, Script)] = &[
    (0xAA..=0xAA, Script::LatinExtended),
    (0xB5..=0xB5, Script::Greek),
    (0xBA..=0xBA, Script::LatinExtended),
    (0xC0..=0x24F, Script::LatinExtended),
    (0x250..=0x2FF, Script::Foreign),
    // Accents that follow their letter.
    (0x300..=0x36F, Script::LatinExtended),
    (0x370..=0x3FF, Script::Greek),
    (0x400..=0x52F, Script::Cyrillic),
    (0x530..=0x58F, Script::Foreign),
    (0x590..=0x5FF, Script::Hebrew),
    (0x600..=0x60B, Script::Foreign),
    (0x610..=0x61A, Script::Arabic),
    (0x620..=0x669, Script::Arabic),
    (0x66E..=0x6D3, Script::Arabic),
    (0x6D5..=0x6FF, Script::Arabic),
    (0x700..=0x74F, Script::Foreign),
    (0x750..=0x77F, Script::Arabic),
    (0x780..=0x8FF, Script::Foreign),
    (0x900..=0x963, Script::Devanagari),
    (0x966..=0x97F, Script::Devanagari),
    (0x980..=0xDFF, Script::Foreign),
    (0xE00..=0xE7F, Script::Thai),
    (0xE80..=0x10FF, Script::Foreign),
    (0x1100..=0x11FF, Script::Hangul),
    (0x1200..=0x1DFF, Script::Foreign),
    (0x1E00..=0x1EFF, Script::LatinExtended),
    (0x1F00..=0x1FFF, Script::Greek),
    (0x2C00..=0x2DFF, Script::Foreign),
    (0x3005..=0x3007, Script::Han),
    (0x3041..=0x309F, Script::Kana),
    (0x30A1..=0x30FA, Script::Katakana),
    (0x30FC..=0x30FF, Script::Katakana),
    (0x3100..=0x312F, Script::Foreign),
    (0x3130..=0x318F, Script::Hangul),
    (0x31F0..=0x31FF, Script::Katakana),
    (0x3400..=0x9FFF, Script::Han),
    (0xA000..=0xABFF, Script::Foreign),
    (0xAC00..=0xD7FF, Script::Hangul),
    (0xF900..=0xFAFF, Script::Han),
    (0xFB1D..=0xFB4F, Script::Hebrew),
    (0xFB50..=0xFDFF, Script::Arabic),
    (0xFE70..=0xFEFE, Script::Arabic),
    (0xFF21..=0xFF3A, Script::LatinExtended),
    (0xFF41..=0xFF5A, Script::LatinExtended),
    (0xFF66..=0xFF9F, Script::Katakana),
    (0x10000..=0x1CFFF, Script::Foreign),
    (0x20000..=0x3FFFF, Script::Han),
];

/// Characters after kana for which a Chinese character is taken for a Japanese one.
const KANA_REACH: u8 = 12;
/// Letters of a word that cost nothing beside the word.
const LATIN_SHORT: usize = 5;
/// Letters of a word up to which each further one costs [`Feature::LatinLonger`].
const LATIN_LONGER: usize = 9;
/// Texts that are told apart while they grow in turns, as the choices of one answer.
const LANES: usize = 8;

/// Where in a text.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Lane {
    last: TokenKind,
    /// Characters of the last kind, up to a limit.
    run: u8,
    /// Whether the last letter was a capital one.
    is_capital: bool,
    since_kana: Option<u8>,
}

/// The tokens of some texts.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct TokenTally {
    millis: u64,
    is_begun: bool,
    lanes: [Lane; LANES],
}

// === impl Tally ===

impl TokenTally {
    /// Appends a piece to one of the texts. Texts of the same number in [`LANES`] should not grow in turns.
    pub(super) fn push(&mut self, lane: u64, piece: &str) {
        let index = usize::try_from(lane % LANES as u64).unwrap_or_default();
        let Some(lane) = self.lanes.get_mut(index) else { return };
        self.is_begun |= !piece.is_empty();
        let mut rest = piece;
        loop {
            // Most text is words of small letters, so these are counted together.
            let letters = rest.bytes().take_while(u8::is_ascii_lowercase).count();
            self.millis = self.millis.saturating_add(lane.small_letters(letters));
            let mut others = rest.get(letters..).unwrap_or_default().chars();
            let Some(c) = others.next() else { return };
            for feature in lane.next(c).into_iter().flatten() {
                self.millis = self.millis.saturating_add(millis(feature));
            }
            rest = others.as_str();
        }
    }

    /// Estimated tokens of all texts; at least 1, if there is any character.
    pub(super) fn tokens(&self) -> u64 {
        (self.millis.saturating_add(500) / 1_000).max(u64::from(self.is_begun))
    }
}

// === impl Lane ===

impl Lane {
    /// What so many small letters from a to z cost; the same as [`Lane::next`] for each.
    fn small_letters(&mut self, letters: usize) -> u64 {
        if letters == 0 {
            return 0;
        }
        let begun = match self.last {
            TokenKind::Letter(script) if is_one_alphabet(script) => self.run,
            _ => 0,
        };
        let end = usize::from(begun).saturating_add(letters);
        self.run = u8::try_from(end).unwrap_or(u8::MAX);
        (self.last, self.is_capital) = (TokenKind::Letter(Script::Latin), false);
        let passed = u8::try_from(letters).unwrap_or(u8::MAX);
        self.since_kana = self.since_kana.map(|since| since.saturating_add(passed));
        let first = if begun == 0 { millis(Feature::LatinWord) } else { 0 };
        first.saturating_add(latin_word(end).saturating_sub(latin_word(begun.into())))
    }

    /// What the next character counts as.
    fn next(&mut self, c: char) -> [Option<Feature>; 2] {
        let kind = kind(c);
        let before = *self;
        let is_same = match (before.last, kind) {
            (TokenKind::Letter(a), TokenKind::Letter(b)) => is_one_alphabet(a) && is_one_alphabet(b) || a == b,
            (a, b) => a == b,
        };
        let is_capital = c.is_uppercase();
        // A capital letter begins a word in camelCase.
        let splits = is_capital && !before.is_capital && kind == TokenKind::Letter(Script::Latin);
        self.run = if is_same && !splits { before.run.saturating_add(1) } else { 1 };
        (self.last, self.is_capital) = (kind, is_capital);
        self.since_kana = match kind {
            TokenKind::Letter(Script::Kana) => Some(0),
            _ => before.since_kana.map(|since| since.saturating_add(1)),
        };
        self.features(kind, before, c)
    }

    fn features(&self, kind: TokenKind, before: Lane, c: char) -> [Option<Feature>; 2] {
        let run = self.run;
        let word = |first, letter| if run == 1 { [Some(first), Some(letter)] } else { [Some(letter), None] };
        let one = |feature| [Some(feature), None];
        match kind {
            TokenKind::Letter(script) => match script {
                Script::Latin => match run {
                    1 => [Some(Feature::LatinWord), None],
                    _ if self.is_capital => one(Feature::LatinCapital),
                    _ if usize::from(run) <= LATIN_SHORT => [None, None],
                    _ if usize::from(run) <= LATIN_LONGER => one(Feature::LatinLonger),
                    _ => one(Feature::LatinLong),
                },
                Script::LatinExtended if run == 1 => [Some(Feature::LatinWord), Some(Feature::LatinExtended)],
                Script::LatinExtended => one(Feature::LatinExtended),
                Script::Cyrillic => word(Feature::CyrillicWord, Feature::CyrillicLetter),
                Script::Greek => word(Feature::GreekWord, Feature::GreekLetter),
                Script::Arabic => word(Feature::ArabicWord, Feature::ArabicLetter),
                Script::Hebrew => word(Feature::HebrewWord, Feature::HebrewLetter),
                Script::Devanagari => word(Feature::DevanagariWord, Feature::DevanagariLetter),
                Script::Thai => one(Feature::ThaiLetter),
                Script::Kana => one(Feature::KanaLetter),
                Script::Katakana => one(Feature::KatakanaLetter),
                Script::Han if self.since_kana.is_some_and(|since| since <= KANA_REACH) => one(Feature::KanjiLetter),
                Script::Han => one(Feature::HanLetter),
                Script::Hangul => word(Feature::HangulWord, Feature::HangulLetter),
                Script::Foreign => one(Feature::ForeignLetter),
            },
            // Threes of digits; a blank before a number stands for itself.
            TokenKind::Digit if run % 3 == 1 => {
                [Some(Feature::Digits), (before.last == TokenKind::Space && before.run == 1).then_some(Feature::Digits)]
            }
            TokenKind::Space if run == 2 => one(Feature::Indent),
            TokenKind::Newline if run == 1 && !matches!(before.last, TokenKind::Mark) => one(Feature::Newline),
            TokenKind::Mark if run == 1 => one(Feature::MarkFirst),
            TokenKind::Mark => one(Feature::MarkMore),
            TokenKind::WideMark => one(Feature::WideMark),
            TokenKind::Emoji if u32::from(c) < 0x1_0000 => one(Feature::OldEmoji),
            TokenKind::Emoji => one(Feature::Emoji),
            TokenKind::Modifier => one(Feature::Modifier),
            TokenKind::Digit | TokenKind::Space | TokenKind::Newline => [None, None],
        }
    }
}

/// What the first so many small letters of a word cost beside the word itself.
fn latin_word(letters: usize) -> u64 {
    let longer = letters.clamp(LATIN_SHORT, LATIN_LONGER) - LATIN_SHORT;
    let long = letters.saturating_sub(LATIN_LONGER);
    let cost = |letters: usize, feature| (letters as u64).saturating_mul(millis(feature));
    cost(longer, Feature::LatinLonger).saturating_add(cost(long, Feature::LatinLong))
}

fn is_one_alphabet(script: Script) -> bool {
    matches!(script, Script::Latin | Script::LatinExtended)
}

fn kind(c: char) -> TokenKind {
    match c {
        'a'..='z' | 'A'..='Z' => TokenKind::Letter(Script::Latin),
        '0'..='9' => TokenKind::Digit,
        '\n' | '\r' => TokenKind::Newline,
        ' ' | '\t' | '\u{A0}' | '\u{3000}' => TokenKind::Space,
        '\0'..='\u{7F}' => TokenKind::Mark,
        '\u{200B}'..='\u{200F}' | '\u{FE00}'..='\u{FE0F}' | '\u{20E3}' | '\u{1F3FB}'..='\u{1F3FF}' => {
            TokenKind::Modifier
        }
        '\u{2190}'..='\u{2BFF}' | '\u{1F000}'..='\u{1FAFF}' => TokenKind::Emoji,
        _ => {
            let code = u32::from(c);
            let at = RANGES.partition_point(|(range, _)| *range.end() < code);
            match RANGES.get(at) {
                Some((range, script)) if range.contains(&code) => TokenKind::Letter(*script),
                _ => TokenKind::WideMark,
            }
        }
    }
}

#[cfg(test)]
mod tests;
