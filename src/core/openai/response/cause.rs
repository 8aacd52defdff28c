//! Whose fault an error is. Servers say it in a number, in a word, or only inside of the message; this is the one place that knows
//! their vocabulary.
//!
//! The order in which they count:
//!
//! 1. a number that says busy or client;
//! 2. a word that says busy or client, even beside a number like 500: it is the more exact of the two;
//! 3. a number inside of the message, as `'code': 400`, which a server leaves there that wraps another's error into its own;
//! 4. a phrase of the message;
//! 5. what the form implies: FastAPI's `detail` is the client's fault;
//! 6. the server.

use super::ErrorCause;
use ErrorCause::{Busy, Client, Server};

/// What parts of words say, compared without case and without anything but letters and digits. The first row counts that is part of
/// a word.
const WORDS: &[(&str, ErrorCause)] = &[
    // Of Anthropic, OpenAI, vLLM, SGLang, TGI, llama-server, Google, Azure, Bedrock, NIM.
    ("overload", Busy),
    ("ratelimit", Busy),
    ("toomanyrequest", Busy),
    ("throttl", Busy),
    ("quota", Busy),
    ("unavailable", Busy),
    ("exhausted", Busy),
    ("slowdown", Busy),
    ("notready", Busy),
    ("capacity", Busy),
    ("busy", Busy),
    ("queuefull", Busy),
    ("internal", Server),
    ("timeout", Server),
    ("timedout", Server),
    ("badgateway", Server),
    ("servererror", Server),
    ("invalid", Client),
    ("unsupported", Client),
    ("notsupported", Client),
    ("badrequest", Client),
    ("clienterror", Client),
    ("authentication", Client),
    ("unauthenticated", Client),
    ("unauthorized", Client),
    ("authorization", Client),
    ("apikey", Client),
    ("permission", Client),
    ("forbidden", Client),
    ("denied", Client),
    ("notfound", Client),
    ("notallowed", Client),
    ("notimplemented", Client),
    ("unimplemented", Client),
    ("toolarge", Client),
    ("toosmall", Client),
    ("toolong", Client),
    ("contextlength", Client),
    ("contextsize", Client),
    ("contextwindow", Client),
    ("contentfilter", Client),
    ("policy", Client),
    ("moderation", Client),
    ("billing", Client),
    ("validation", Client),
    ("unprocessable", Client),
    ("missing", Client),
    ("outofrange", Client),
    ("failedprecondition", Client),
    ("conflict", Client),
    ("templateerror", Client),
    ("image", Client),
];

/// What a message says that has neither a number nor a known word beside it: Ollama, and engines whose server calls every error
/// internal. In lower case.
const PHRASES: &[(&str, ErrorCause)] = &[
    ("server busy", Busy),
    ("currently busy", Busy),
    ("overloaded", Busy),
    ("too many requests", Busy),
    ("rate limit", Busy),
    ("maximum context length", Client),
];

/// Longer strings are sentences, and not one word.
const WORD_BYTES_MAX: usize = 48;
/// A message is looked at through a window of this size, which then moves on and keeps its last part.
const WINDOW_BYTES: usize = 256;
/// Longer than everything that is looked for.
const OVERLAP_BYTES: usize = 48;

/// What an error object has said so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Evidence {
    number: Option<u16>,
    word: Option<ErrorCause>,
    hidden: Option<u16>,
    phrase: Option<ErrorCause>,
    /// Whether the form of the object is the one that a refused request gets.
    is_refusal: bool,
    window: Vec<u8>,
    /// The first bytes of the message, if it is short enough for a word.
    head: Vec<u8>,
}

impl Evidence {
    /// A number, or a string that may be one: `code`, `status`.
    pub(super) fn code(&mut self, text: &str) {
        match text.trim().parse() {
            Ok(number) => self.number = self.number.or(error_status(number)),
            Err(_) => self.word(text),
        }
    }

    /// A word: `type`, `reason`.
    pub(super) fn word(&mut self, text: &str) {
        if text.len() <= 2 * WORD_BYTES_MAX
            && let Some(cause) = cause_of_word(text)
            && self.word.is_none_or(|known| known == Server)
        {
            self.word = Some(cause);
        }
    }

    /// More of a message.
    pub(super) fn message(&mut self, piece: &str) {
        let room = (WORD_BYTES_MAX + 1).saturating_sub(self.head.len());
        self.head.extend(piece.bytes().take(room));
        for byte in piece.bytes() {
            self.window.push(byte.to_ascii_lowercase());
            if self.window.len() >= WINDOW_BYTES {
                self.look();
                self.window.drain(..self.window.len().saturating_sub(OVERLAP_BYTES));
            }
        }
    }

    /// A message ended; `is_word` if it is all that the error says.
    pub(super) fn message_end(&mut self, is_word: bool) {
        // As if a blank followed: a number at the end is whole.
        self.window.push(b' ');
        self.look();
        self.window.clear();
        let head = std::mem::take(&mut self.head);
        if is_word && head.len() <= WORD_BYTES_MAX {
            self.word(&String::from_utf8_lossy(&head));
        }
    }

    /// The object has the form that a refused request gets.
    pub(super) fn is_refusal(&mut self) {
        self.is_refusal = true;
    }

    /// Whether a status came that is one of an error.
    pub(super) fn has_number(&self) -> bool {
        self.number.is_some()
    }

    /// Whose fault it is by all that was said.
    pub(super) fn cause(&self) -> ErrorCause {
        let number = |number: Option<u16>| number.map(cause_of_status);
        let exact = |cause: &ErrorCause| *cause != Server;
        let implied = (self.is_refusal && self.number.is_none() && self.word.is_none()).then_some(Client);
        let in_order = [number(self.number), self.word, number(self.hidden), self.phrase, implied];
        in_order.into_iter().flatten().find(exact).unwrap_or(Server)
    }

    fn look(&mut self) {
        if self.hidden.is_none() {
            self.hidden = hidden_code(&self.window);
        }
        if self.phrase.is_none() {
            let is_in = |phrase: &str| self.window.windows(phrase.len()).any(|part| part == phrase.as_bytes());
            self.phrase = PHRASES.iter().find(|(phrase, _)| is_in(phrase)).map(|(_, cause)| *cause);
        }
    }
}

fn error_status(number: u64) -> Option<u16> {
    u16::try_from(number).ok().filter(|number| (400..=599).contains(number))
}

/// 408 and 424 are what Bedrock gives to a model's timeout and to its crash; 501 and 505 are what the server will never do.
fn cause_of_status(status: u16) -> ErrorCause {
    match status {
        429 | 503 | 529 => Busy,
        408 | 424 => Server,
        400..=499 | 501 | 505 => Client,
        _ => Server,
    }
}

fn cause_of_word(word: &str) -> Option<ErrorCause> {
    let plain: String = word.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
    WORDS.iter().find(|(part, _)| plain.contains(part)).map(|(_, cause)| *cause)
}

/// The first status of an error that stands behind `'code':`, `"code": `, `status_code=` or `error code: `.
fn hidden_code(text: &[u8]) -> Option<u16> {
    const CODE: &[u8] = b"code";
    let ends = text.windows(CODE.len()).enumerate().filter(|(_, part)| *part == CODE).map(|(at, _)| at);
    ends.filter_map(|at| {
        let before = text.get(..at)?;
        let is_name = before.ends_with(b"'")
            || before.ends_with(b"\"")
            || before.ends_with(b"_")
            || before.ends_with(b"error ")
            || before.ends_with(b"status ");
        status_behind(text.get(at.checked_add(CODE.len())?..)?).filter(|_| is_name)
    })
    .next()
}

/// `': 400,` is 400. The byte behind the number must be there, so that a number is not read before all of it is.
fn status_behind(text: &[u8]) -> Option<u16> {
    let skip = |text: &mut &[u8], bytes: &[u8]| {
        while let Some((first, rest)) = text.split_first()
            && bytes.contains(first)
        {
            *text = rest;
        }
    };
    let mut rest = text;
    skip(&mut rest, b"\\'\" ");
    rest = rest.strip_prefix(b":").or_else(|| rest.strip_prefix(b"="))?;
    skip(&mut rest, b"\\'\" ");
    let (digits, after) = rest.split_at_checked(3)?;
    if after.first()?.is_ascii_alphanumeric() {
        return None;
    }
    error_status(str::from_utf8(digits).ok()?.parse().ok()?)
}

#[cfg(test)]
mod tests;
