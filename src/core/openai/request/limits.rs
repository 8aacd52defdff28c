//! The numbers by which a client says how much is to be generated, as the strictest and the laxest server read them.

use std::ops::Range;

use super::super::Api;
use super::super::scan::Scalar;
use super::lax::{Lax, Written};

/// What vLLM, SGLang and TensorRT-LLM generate for `/v1/completions` where the client says nothing.
const COMPLETION_TOKENS: u32 = 16;

/// A field that limits the tokens of an answer; the last of its name counts.
#[derive(Clone, Debug)]
struct LimitField {
    /// None where it is no limit: null, 0, and what no server takes for a positive number.
    tokens: Option<u32>,
    /// Whether every server reads the same: a positive whole number in plain digits.
    is_plain: bool,
    span: Range<u64>,
}

/// The numbers of a body.
#[derive(Clone, Debug, Default)]
pub(super) struct LengthLimits {
    max_completion_tokens: Option<LimitField>,
    /// `max_tokens`, or `max_output_tokens`.
    max_tokens: Option<LimitField>,
    n: LimitNumber,
    best_of: LimitNumber,
    min_tokens: LimitNumber,
}

/// Which number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name {
    MaxCompletionTokens,
    MaxTokens,
    N,
    BestOf,
    MinTokens,
}

/// A number of which a wrong reading would cost more than the client may spend.
#[derive(Clone, Copy, Debug, Default)]
enum LimitNumber {
    #[default]
    Absent,
    Read(u32),
    /// No server takes it for a number, or it is too long to be read.
    Unreadable,
}

impl LimitNumber {
    fn new(value: Written<'_>) -> LimitNumber {
        match value.integer() {
            Lax::Absent => LimitNumber::Absent,
            Lax::Value(number) if number >= 0 => LimitNumber::Read(u32::try_from(number).unwrap_or(u32::MAX)),
            Lax::Value(_) | Lax::Refused => LimitNumber::Unreadable,
        }
    }

    fn or(self, default: u32) -> u32 {
        if let LimitNumber::Read(number) = self { number } else { default }
    }
}

impl LengthLimits {
    /// The value of a field.
    pub(super) fn set(&mut self, name: Name, value: Written<'_>, span: Range<u64>) {
        let plain = |text: &str| text.len() < 10 && text.bytes().all(|b| b.is_ascii_digit());
        let tokens = match LimitNumber::new(value) {
            LimitNumber::Read(tokens) if tokens > 0 => Some(tokens),
            _ => None,
        };
        let is_plain = tokens.is_some() && matches!(value, Written::Scalar(Scalar::Number(text)) if plain(text));
        let field = || Some(LimitField { tokens, is_plain, span });
        match name {
            Name::MaxCompletionTokens => self.max_completion_tokens = field(),
            Name::MaxTokens => self.max_tokens = field(),
            Name::N => self.n = LimitNumber::new(value),
            Name::BestOf => self.best_of = LimitNumber::new(value),
            Name::MinTokens => self.min_tokens = LimitNumber::new(value),
        }
    }

    /// A field whose value is a list or an object.
    pub(super) fn set_container(&mut self, name: Name) {
        match name {
            // Servers refuse it; an inserted limit leaves it the last of its name.
            Name::MaxCompletionTokens | Name::MaxTokens => {}
            Name::N => self.n = LimitNumber::Unreadable,
            Name::BestOf => self.best_of = LimitNumber::Unreadable,
            Name::MinTokens => self.min_tokens = LimitNumber::Unreadable,
        }
    }

    fn fields(&self) -> impl Iterator<Item = &LimitField> {
        [&self.max_completion_tokens, &self.max_tokens].into_iter().flatten()
    }

    /// The most tokens of an answer; the first of two fields counts. None where the client names no limit.
    pub(super) fn max_tokens(&self, api: Api) -> Option<u32> {
        let is_absent = self.fields().next().is_none();
        let by_default = (api == Api::Completions && is_absent).then_some(COMPLETION_TOKENS);
        self.fields().find_map(|field| field.tokens).or(by_default)
    }

    /// Whether every server reads the limit as [`LengthLimits::max_tokens`] does: some have read the other field first.
    pub(super) fn are_plain(&self) -> bool {
        let first = self.fields().next().map(|field| field.tokens);
        first.is_some_and(|tokens| self.fields().all(|field| field.is_plain && field.tokens == tokens))
    }

    /// Where the values of the limits stand.
    pub(super) fn spans(&self) -> [Option<Range<u64>>; 2] {
        [&self.max_completion_tokens, &self.max_tokens].map(|field| field.as_ref().map(|field| field.span.clone()))
    }

    /// Answers per prompt, at least 1; candidates from which servers choose the best count like answers.
    pub(super) fn answers(&self) -> u32 {
        self.n.or(1).max(self.best_of.or(1)).max(1)
    }

    /// Tokens that each answer must have.
    pub(super) fn min_tokens(&self) -> u32 {
        self.min_tokens.or(0)
    }

    /// The field that must be a whole number and is none.
    pub(super) fn unreadable(&self) -> Option<&'static str> {
        let numbers = [(self.n, "n"), (self.best_of, "best_of"), (self.min_tokens, "min_tokens")];
        numbers.into_iter().find(|(number, _)| matches!(number, LimitNumber::Unreadable)).map(|(_, name)| name)
    }
}
