//! What a response tells on its way to the client: content events, usage, errors inside a 200 stream, and its end.
//!
//! An event counts as soon as its JSON is complete, because servers differ in the blank line after the last one.

use std::ops::Range;

use super::{
    Api,
    scan::{Container, Kept, Levels, Scalar, Scanner, Sink, Want},
    sse::{Events, Token},
};

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

/// What a response told so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Server-sent events with generated content, an empty text included: half a UTF-8 character is a token without text. Not
    /// those that only name a role, tell the usage or keep the connection alive.
    pub content_events: u64,
    /// What was used; the last word counts.
    pub usage: Option<Usage>,
    /// Whether the server says that a limit of tokens has cut an answer.
    pub cut_short: bool,
    /// The id of a response of `/v1/responses`, by which the client may come back to it.
    pub response_id: Option<String>,
    /// Whether an error object came, which inside a stream is the only sign that a request failed.
    pub error_event: bool,
    /// The status that the error object names, if it does.
    pub error_code: Option<u16>,
    /// Whether the response is at its end: `[DONE]`, the API's last event, or the end of the JSON body.
    pub ended: bool,
}

/// Reads a response's body piece by piece, in memory that does not grow with it.
#[derive(Clone, Debug)]
pub struct ResponseScan {
    scanner: Scanner,
    reading: Reading,
    /// Whether the JSON text was taken in, and what is left of it does not count.
    taken: bool,
    /// None for a JSON body.
    events: Option<Events>,
    observed: Observed,
}

/// One JSON text as far as it is read: an event's data or a whole body.
#[derive(Clone, Debug)]
struct Reading {
    api: Api,
    levels: Levels<Place>,
    key: Key,
    kind: Kind,
    delta: Delta,
    has_content: bool,
    has_error: bool,
    error_code: Option<u16>,
    is_cut_short: bool,
    id: Option<String>,
    usage: Option<PartialUsage>,
    /// Whether the object ended.
    is_whole: bool,
}

/// What one choice gained in a chat's stream.
#[derive(Clone, Copy, Debug, Default)]
struct Delta {
    names_role: bool,
    has_empty_text: bool,
    has_content: bool,
}

/// Messages tells its usage in parts.
#[derive(Clone, Copy, Debug, Default)]
struct PartialUsage {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    cached_tokens: Option<u64>,
}

/// What an event's `type` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kind {
    #[default]
    Other,
    Content,
    End,
    /// The end, because of an error.
    Failed,
    Error,
}

/// What an open container is.
#[derive(Clone, Copy, Debug, Default)]
enum Place {
    #[default]
    Elsewhere,
    Body,
    Error,
    /// The response or message that an event is about.
    Subject,
    /// What ended a response of `/v1/responses` early.
    Incomplete,
    Choices,
    Choice,
    Delta,
    MessageDelta,
    ToolCalls,
    Usage,
    UsageDetails,
}

/// What the value that comes next is, inside of an object.
#[derive(Clone, Copy, Debug, Default)]
enum Key {
    #[default]
    Other,
    Type,
    Id,
    Error,
    ErrorCode,
    Subject,
    Incomplete,
    /// Why an answer ended.
    EndReason,
    Choices,
    Delta,
    Role,
    Text,
    ToolCalls,
    Usage,
    UsageDetails,
    PromptTokens,
    CompletionTokens,
    CachedTokens,
}

// === impl ResponseScan ===

impl ResponseScan {
    /// Expects a response of this API; `content_type_is_sse` tells a stream of events from a JSON body.
    pub fn new(api: Api, content_type_is_sse: bool) -> ResponseScan {
        ResponseScan {
            scanner: Scanner::default(),
            reading: Reading::new(api),
            taken: false,
            events: content_type_is_sse.then(Events::default),
            observed: Observed::default(),
        }
    }

    /// Reads the next piece, wherever it is cut.
    pub fn push(&mut self, mut bytes: &[u8]) {
        let ResponseScan { scanner, reading, taken, events, observed } = self;
        let Some(events) = events else {
            scanner.push(bytes, reading);
            if reading.is_whole && !std::mem::replace(taken, true) {
                reading.add_to(observed);
                observed.ended = true;
            }
            return;
        };
        while let Some(token) = events.next(&mut bytes) {
            match token {
                Token::Data(data) => scanner.push(data, reading),
                Token::DataEnd => {
                    if reading.is_whole && !std::mem::replace(taken, true) {
                        observed.content_events += u64::from(reading.is_content());
                        reading.add_to(observed);
                    }
                }
                Token::Done => observed.ended = true,
                Token::Error => observed.error_event = true,
                Token::EventEnd => {
                    scanner.reset();
                    *reading = Reading::new(reading.api);
                    *taken = false;
                }
            }
        }
    }

    /// What was told so far.
    pub fn observed(&self) -> &Observed {
        &self.observed
    }
}

// === impl Reading ===

impl Reading {
    fn new(api: Api) -> Reading {
        Reading {
            api,
            levels: Levels::default(),
            key: Key::Other,
            kind: Kind::Other,
            delta: Delta::default(),
            has_content: false,
            has_error: false,
            error_code: None,
            is_cut_short: false,
            id: None,
            usage: None,
            is_whole: false,
        }
    }

    fn is_content(&self) -> bool {
        self.has_content || self.kind == Kind::Content
    }

    fn add_to(&mut self, observed: &mut Observed) {
        observed.cut_short |= self.is_cut_short;
        observed.error_event |= self.has_error || matches!(self.kind, Kind::Error | Kind::Failed);
        observed.error_code = observed.error_code.or(self.error_code);
        observed.ended |= matches!(self.kind, Kind::End | Kind::Failed);
        if observed.response_id.is_none() {
            observed.response_id = self.id.take();
        }
        if let Some(PartialUsage { prompt_tokens, completion_tokens, cached_tokens }) = self.usage {
            let before = observed.usage.unwrap_or_default();
            observed.usage = Some(Usage {
                prompt_tokens: prompt_tokens.unwrap_or(before.prompt_tokens),
                completion_tokens: completion_tokens.unwrap_or(before.completion_tokens),
                cached_tokens: cached_tokens.or(before.cached_tokens),
            });
        }
    }
}

impl Sink for Reading {
    fn open(&mut self, container: Container, _at: u64) {
        use Container::{Array, Object};
        let place = match (self.levels.innermost(), self.key, container) {
            (None, _, Object) => Place::Body,
            (Some(Place::Body), Key::Error, _) => {
                self.has_error = true;
                Place::Error
            }
            (Some(Place::Body), Key::Subject, Object) => Place::Subject,
            (Some(Place::Body | Place::Subject), Key::Incomplete, Object) => Place::Incomplete,
            (Some(Place::Body), Key::Choices, Array) => Place::Choices,
            (Some(Place::Choices), _, Object) => Place::Choice,
            (Some(Place::Body), Key::Delta, Object) => Place::MessageDelta,
            (Some(Place::Choice), Key::Delta, Object) => {
                self.delta = Delta::default();
                Place::Delta
            }
            (Some(Place::Delta), Key::ToolCalls, Array) => Place::ToolCalls,
            (Some(Place::ToolCalls), _, _) => {
                self.delta.has_content = true;
                Place::Elsewhere
            }
            (Some(Place::Body | Place::Subject), Key::Usage, Object) => {
                self.usage = Some(PartialUsage::default());
                Place::Usage
            }
            (Some(Place::Usage), Key::UsageDetails, Object) => Place::UsageDetails,
            _ => Place::Elsewhere,
        };
        self.levels.push(place);
    }

    fn close(&mut self, _end: u64) {
        match self.levels.pop() {
            Some(Place::Body) => self.is_whole = true,
            Some(Place::Delta) => {
                let Delta { names_role, has_empty_text, has_content } = self.delta;
                self.has_content |= has_content || (has_empty_text && !names_role);
            }
            _ => {}
        }
    }

    fn key(&mut self, name: &str) {
        self.key = match (self.levels.innermost(), name) {
            (Some(Place::Body), "type") => Key::Type,
            (Some(Place::Body), "error") => Key::Error,
            (Some(Place::Body), "choices") => Key::Choices,
            (Some(Place::Body), "response") if self.api == Api::Responses => Key::Subject,
            (Some(Place::Body), "message") if self.api == Api::Messages => Key::Subject,
            (Some(Place::Body | Place::Subject), "id") if self.api == Api::Responses => Key::Id,
            (Some(Place::Body | Place::Subject), "usage") => Key::Usage,
            (Some(Place::Body | Place::Subject), "incomplete_details") => Key::Incomplete,
            (Some(Place::Incomplete), "reason") => Key::EndReason,
            (Some(Place::Error), "code") => Key::ErrorCode,
            (Some(Place::Choice), "finish_reason") => Key::EndReason,
            (Some(Place::Body | Place::MessageDelta), "stop_reason") if self.api == Api::Messages => Key::EndReason,
            (Some(Place::Body), "delta") if self.api == Api::Messages => Key::Delta,
            (Some(Place::Choice), "delta") => Key::Delta,
            (Some(Place::Choice), "text") => Key::Text,
            (Some(Place::Delta), "role") => Key::Role,
            (Some(Place::Delta), "content" | "reasoning" | "reasoning_content" | "refusal") => Key::Text,
            (Some(Place::Delta), "tool_calls") => Key::ToolCalls,
            (Some(Place::Usage), "prompt_tokens" | "input_tokens") => Key::PromptTokens,
            (Some(Place::Usage), "completion_tokens" | "output_tokens") => Key::CompletionTokens,
            (Some(Place::Usage), "cache_read_input_tokens") => Key::CachedTokens,
            (Some(Place::Usage), "prompt_tokens_details" | "input_tokens_details") => Key::UsageDetails,
            (Some(Place::UsageDetails), "cached_tokens") => Key::CachedTokens,
            _ => Key::Other,
        };
    }

    fn string(&mut self) -> Want {
        match (self.levels.innermost(), self.key) {
            (Some(Place::Body), Key::Type) | (Some(Place::Body | Place::Subject), Key::Id) | (_, Key::EndReason) => {
                Want::Whole
            }
            (Some(Place::Body), Key::Error) => {
                self.has_error = true;
                Want::Nothing
            }
            (Some(Place::Choice), Key::Text) => {
                self.has_content = true;
                Want::Nothing
            }
            (Some(Place::Delta), Key::Role) => {
                self.delta.names_role = true;
                Want::Nothing
            }
            (Some(Place::Delta), Key::Text) => {
                self.delta.has_empty_text = true;
                Want::Pieces
            }
            _ => Want::Nothing,
        }
    }

    fn text(&mut self, piece: &str) {
        self.delta.has_content |= !piece.is_empty();
    }

    fn string_end(&mut self, kept: Kept<'_>, _span: Range<u64>) {
        match self.key {
            Key::Type if !kept.cut => {
                self.kind = match kept.text {
                    "content_block_delta" => Kind::Content,
                    "message_stop" | "response.completed" | "response.incomplete" => Kind::End,
                    "response.failed" => Kind::Failed,
                    "error" => Kind::Error,
                    delta if delta.starts_with("response.") && delta.ends_with(".delta") => Kind::Content,
                    _ => self.kind,
                }
            }
            // As chat and completions, responses, and messages call it.
            Key::EndReason => self.is_cut_short |= ["length", "max_output_tokens", "max_tokens"].contains(&kept.text),
            Key::Id if !kept.cut && !kept.text.is_empty() => self.id = Some(kept.text.to_owned()),
            _ => {}
        }
    }

    fn scalar(&mut self, scalar: Scalar<'_>, _span: Range<u64>) {
        let Scalar::Number(number) = scalar else { return };
        if let (Some(Place::Error), Key::ErrorCode) = (self.levels.innermost(), self.key) {
            self.error_code = number.parse().ok();
        }
        let Some(usage) = &mut self.usage else { return };
        let Ok(count) = number.parse() else { return };
        match (self.levels.innermost(), self.key) {
            (Some(Place::Usage), Key::PromptTokens) => usage.prompt_tokens = Some(count),
            (Some(Place::Usage), Key::CompletionTokens) => usage.completion_tokens = Some(count),
            (Some(Place::Usage | Place::UsageDetails), Key::CachedTokens) => usage.cached_tokens = Some(count),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
