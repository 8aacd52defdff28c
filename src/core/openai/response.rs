//! What a response tells on its way to the client: content events, usage, errors inside a 200 stream, and its end.
//!
//! An event counts as soon as its JSON is complete, because servers differ in the blank line after the last one.

mod cause;
mod choices;
mod place;
mod reading;

use super::{
    Api,
    scan::Scanner,
    sse::{Events, Token},
    tokens::TokenTally,
};
use choices::Choices;
use reading::{AnswerReading, PartialUsage};

/// Tokens that a response used, as the server counted them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub completion_tokens: u64,
    /// Tokens of the prompt that came out of the prefix cache; None where the server does not say.
    pub cached_tokens: Option<u64>,
}

/// Whose fault an error is, as far as the error object says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCause {
    /// The server has too much to do now, or the client's rate or quota is used up: another instance may answer.
    Busy,
    /// The request cannot be answered as it is, by no instance.
    Client,
    /// The server failed, or nobody knows.
    Server,
}

/// How a generation ended, as the server says; the greater one is worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ending {
    /// The model ended its answer, or called a tool.
    ByItself,
    /// A limit of tokens has cut it.
    Limit,
    /// It was cut for another reason: a filter, a cancellation, an error, or a word that nobody knows.
    Other,
}

/// What a response told so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Server-sent events with generated content, an empty text included: half a UTF-8 character is a token without text. Not
    /// those that only name a role, tell the usage or keep the connection alive.
    pub content_events: u64,
    /// What was used; the last word counts.
    pub usage: Option<Usage>,
    /// Tokens of everything that was generated, estimated from its text: streamed deltas as well as whole bodies. Media is no text.
    pub completion_tokens_estimate: u64,
    /// Whether anything was answered: some text, a tool call, audio; or an embedding, or a count of tokens. Not by an empty body,
    /// nor by an answer whose text is empty.
    pub has_output: bool,
    /// How the generation ended; of several choices, the worst ending. None while nobody says.
    pub ending: Option<Ending>,
    /// The id of a response of `/v1/responses`, by which the client may come back to it.
    pub response_id: Option<String>,
    /// Whether an error object came, which inside a stream is the only sign that a request failed. Empty ones are no error.
    pub error_event: bool,
    /// Whose fault the first error is; it is there exactly if `error_event`.
    pub error_cause: Option<ErrorCause>,
    /// Whether the response is at its end: `[DONE]`, the API's last event, a reason to finish for every choice that began, or the
    /// end of the JSON body. Another choice that begins takes it back: ask when the body has ended.
    pub ended: bool,
}

/// Reads a response's body piece by piece, in memory that does not grow with it.
#[derive(Clone, Debug)]
pub struct ResponseScan {
    scanner: Scanner,
    reading: AnswerReading,
    /// Whether the JSON text was taken in, and what is left of it does not count.
    taken: bool,
    /// None for a JSON body.
    events: Option<Events>,
    /// What was generated in the texts that were taken in.
    tally: TokenTally,
    choices: Choices,
    /// Whether the API's own end came.
    at_end: bool,
    /// Whether the event's name has said that it is an error, and its data has not said which.
    unexplained: bool,
    observed: Observed,
}

// === impl ResponseScan ===

impl ResponseScan {
    /// Expects a response of this API; `content_type_is_sse` tells a stream of events from a JSON body.
    pub fn new(api: Api, content_type_is_sse: bool) -> ResponseScan {
        ResponseScan {
            scanner: Scanner::default(),
            reading: AnswerReading::new(api, content_type_is_sse, TokenTally::default()),
            taken: false,
            events: content_type_is_sse.then(Events::default),
            tally: TokenTally::default(),
            choices: Choices::default(),
            at_end: false,
            unexplained: false,
            observed: Observed::default(),
        }
    }

    /// Reads the next piece, wherever it is cut.
    pub fn push(&mut self, mut bytes: &[u8]) {
        let Some(mut events) = self.events.take() else {
            self.scanner.push(bytes, &mut self.reading);
            self.take();
            return;
        };
        while let Some(token) = events.next(&mut bytes) {
            match token {
                Token::Data(data) => self.scanner.push(data, &mut self.reading),
                Token::DataEnd => self.take(),
                Token::Done => {
                    self.at_end = true;
                    self.observed.ended = true;
                }
                Token::Error => {
                    self.unexplained = self.observed.error_cause.is_none();
                    self.reading.has_error = true;
                    self.note_error();
                }
                Token::EventEnd => {
                    self.scanner.reset();
                    self.reading = AnswerReading::new(self.reading.api, true, self.tally.clone());
                    (self.taken, self.unexplained) = (false, false);
                }
            }
        }
        self.events = Some(events);
    }

    /// What was told so far.
    pub fn observed(&self) -> &Observed {
        &self.observed
    }

    /// Adds what the JSON text says, once all of it is read.
    fn take(&mut self) {
        let ResponseScan { reading, observed, .. } = self;
        if !reading.is_whole || std::mem::replace(&mut self.taken, true) {
            return;
        }
        let is_event = reading.is_event;
        observed.content_events += u64::from(is_event && reading.is_content());
        observed.ending = observed.ending.max(reading.ending());
        if observed.response_id.is_none() {
            observed.response_id = reading.id.take();
        }
        if let Some(PartialUsage { prompt_tokens, completion_tokens, cached_tokens }) = reading.usage {
            let before = observed.usage.unwrap_or_default();
            observed.usage = Some(Usage {
                prompt_tokens: prompt_tokens.unwrap_or(before.prompt_tokens),
                completion_tokens: completion_tokens.unwrap_or(before.completion_tokens),
                cached_tokens: cached_tokens.or(before.cached_tokens),
            });
        }
        if reading.adds_to(observed) {
            observed.has_output |= reading.has_output;
            if !reading.is_media() {
                self.tally = reading.tally.clone();
                observed.completion_tokens_estimate = self.tally.tokens();
            }
        }
        self.at_end |= !is_event || reading.is_end();
        self.choices.add(&reading.choices);
        observed.ended = self.at_end || self.choices.are_finished();
        reading.has_error |= reading.is_error();
        self.note_error();
    }

    fn note_error(&mut self) {
        if !self.reading.has_error {
            return;
        }
        self.observed.error_event = true;
        let cause = self.reading.is_whole.then(|| self.reading.evidence.cause());
        if self.observed.error_cause.is_none() || (self.unexplained && cause.is_some()) {
            self.observed.error_cause = Some(cause.unwrap_or(ErrorCause::Server));
        }
        self.unexplained &= cause.is_none();
    }
}

#[cfg(test)]
mod tests;
