//! What a request's body fixes, and a bounded window of its text, in one linear pass.

use std::{fmt, ops::Range};

use super::{
    Api,
    scan::{Container, Failure, Kept, Levels, Scalar, Scanner, Sink, Want},
};
use crate::features::TextWindow;

/// What routing reads of a request's body. Offsets count bytes from the body's start.
#[derive(Clone, Debug)]
pub struct Prompt {
    /// The model that the client named; None if it named none (null and `""` name none, as in vLLM). A name of more than
    /// 256 bytes is cut and ends in `…`, so that it matches no model.
    pub model: Option<String>,
    /// Where the value of `model` stands, its quotes included; the last one counts.
    pub model_span: Option<Range<u64>>,
    /// Just after the object's `{`, where a field may be inserted.
    pub insert_at: Option<u64>,
    /// Whether the object has no field at all.
    pub empty_object: bool,
    /// Whether the client asked for server-sent events.
    pub stream: bool,
    /// Whether the client asked for usage at the end of the stream.
    pub include_usage: bool,
    /// The limit of generated tokens that this API reads: `max_completion_tokens` or `max_tokens`, or `max_output_tokens`.
    pub max_tokens: Option<u32>,
    /// Where the values of the fields that limit generated tokens stand, the last of each: `max_completion_tokens`, and
    /// `max_tokens` or `max_output_tokens`. None where the value is neither a limit nor null.
    pub limit_spans: [Option<Range<u64>>; 2],
    /// Answers per prompt, at least 1.
    pub n: u32,
    /// The earlier response that this one continues; only the instance that made it knows it.
    pub previous_response_id: Option<String>,
    /// The text of all messages, instructions and prompts in the body's order, pieces separated by a line feed.
    pub text: TextWindow,
    /// Images, which are counted and not read.
    pub images: u32,
    /// Tokens of prompts that are given as token ids.
    pub token_ids: u64,
    /// Bytes of tool definitions and tool calls: no prompt text, but tokens all the same.
    pub tool_bytes: u64,
    /// Prompts in this body, at least 1.
    pub prompts: u32,
    /// Whether messages, prompt or input are there and not empty.
    pub has_input: bool,
    /// Bytes of the body that were scanned.
    pub bytes: u64,
}

/// Why a body cannot be routed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BodyError {
    /// No body, or white space only.
    Empty,
    /// Not JSON.
    InvalidJson {
        /// The first byte that cannot be part of any JSON, or the body's length if it ends too early.
        offset: u64,
    },
    /// JSON, but no object.
    NotAnObject,
    /// Objects and arrays nested deeper than 512.
    TooDeep,
    /// This field has a type that the API does not know.
    WrongType(&'static str),
    /// This field holds the prompt, and is missing or empty.
    MissingInput(&'static str),
}

/// Replaces a range of the body's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    /// What to take out; empty to insert only.
    pub replace: Range<u64>,
    /// What to put there.
    pub with: String,
}

/// Reads a request's body piece by piece.
#[derive(Clone, Debug)]
pub struct RequestScan {
    scanner: Scanner,
    reading: Reading,
}

/// The prompt as far as it is read, and what is needed to read on.
#[derive(Clone, Debug)]
struct Reading {
    api: Api,
    prompt: Prompt,
    levels: Levels<Place>,
    key: Key,
    has_key: bool,
    has_text: bool,
    /// Whether a separator is due before the next text.
    separate: bool,
    is_image: bool,
    tool_data_at: u64,
    max_completion_tokens: Option<u32>,
    max_tokens: Option<u32>,
    not_an_object: bool,
    model_has_wrong_type: bool,
    input_has_wrong_type: bool,
    input_seen: bool,
    /// vLLM's `prompt_embeds`, which stand in for a prompt.
    embeds_seen: bool,
}

/// What an open container is.
#[derive(Clone, Copy, Debug, Default)]
enum Place {
    #[default]
    Elsewhere,
    Body,
    Messages,
    Message,
    Parts,
    Part,
    Prompts,
    TokenIds,
    StreamOptions,
    ToolData,
}

/// What the value that comes next is, inside of an object.
#[derive(Clone, Copy, Debug, Default)]
enum Key {
    #[default]
    Other,
    Model,
    Stream,
    StreamOptions,
    IncludeUsage,
    MaxTokens,
    MaxCompletionTokens,
    N,
    PreviousResponseId,
    /// The field that holds the conversation: an array of messages or items, for Responses a string too.
    Messages,
    /// The field that holds a prompt or a batch of them: text or token ids.
    Prompts,
    PromptEmbeds,
    /// Text beside the conversation: a system prompt or instructions.
    System,
    Tools,
    Content,
    Text,
    Type,
    Image,
}

// === impl RequestScan ===

impl RequestScan {
    /// Expects a body of this API.
    pub fn new(api: Api) -> RequestScan {
        RequestScan { scanner: Scanner::default(), reading: Reading::new(api) }
    }

    /// Reads the next piece, wherever it is cut.
    pub fn push(&mut self, bytes: &[u8]) {
        self.scanner.push(bytes, &mut self.reading);
    }

    /// Says that the body ended, and takes the prompt out.
    pub fn finish(&mut self) -> Result<Prompt, BodyError> {
        let RequestScan { scanner, reading } = self;
        match scanner.finish(reading) {
            Err(_) if scanner.is_blank() => return Err(BodyError::Empty),
            Err(Failure::Syntax { offset }) => return Err(BodyError::InvalidJson { offset }),
            Err(Failure::TooDeep) => return Err(BodyError::TooDeep),
            Ok(()) => {}
        }
        let input = input_field(reading.api);
        if reading.not_an_object {
            return Err(BodyError::NotAnObject);
        }
        if reading.model_has_wrong_type {
            return Err(BodyError::WrongType("model"));
        }
        if reading.input_has_wrong_type {
            return Err(BodyError::WrongType(input));
        }
        let text = std::mem::take(&mut reading.prompt.text);
        let prompt = Prompt { text, ..self.so_far() };
        if prompt.has_input { Ok(prompt) } else { Err(BodyError::MissingInput(input)) }
    }

    /// The prompt as far as it was read: for a body that is too large to see whole.
    pub fn so_far(&self) -> Prompt {
        let reading = &self.reading;
        Prompt {
            max_tokens: reading.max_completion_tokens.or(reading.max_tokens),
            prompts: reading.prompt.prompts.max(1),
            has_input: reading.prompt.has_input || reading.embeds_seen,
            bytes: self.scanner.bytes(),
            ..reading.prompt.clone()
        }
    }
}

/// The field that must hold the prompt.
fn input_field(api: Api) -> &'static str {
    match api {
        Api::ChatCompletions | Api::Messages | Api::CountTokens => "messages",
        Api::Completions => "prompt",
        Api::Responses | Api::Embeddings => "input",
    }
}

// === impl Prompt ===

impl Prompt {
    /// The patches, in the body's order, that make it name the model `served` and limit its answer to so many tokens. None
    /// where it does so already, or where no object has begun.
    pub fn patches(&self, api: Api, served: &str, max_tokens: Option<u32>) -> Vec<Patch> {
        let mut patches = Vec::new();
        let mut fields = Vec::new();
        let model = (self.model.as_deref() != Some(served)).then(|| serde_json::Value::from(served).to_string());
        match (model, &self.model_span) {
            (Some(with), Some(span)) => patches.push(Patch { replace: span.clone(), with }),
            (Some(with), None) => fields.push(format!("\"model\":{with}")),
            (None, _) => {}
        }
        let limits = max_tokens.map(|limit| (limit, self.limit_spans.iter().flatten()));
        if let Some((limit, spans)) = limits {
            let before = patches.len();
            patches.extend(spans.map(|span| Patch { replace: span.clone(), with: limit.to_string() }));
            if patches.len() == before {
                fields.push(format!("\"{}\":{limit}", limit_field(api)));
            }
        }
        if let Some(at) = self.insert_at.filter(|_| !fields.is_empty()) {
            let comma = if self.empty_object { "" } else { "," };
            patches.push(Patch { replace: at..at, with: fields.join(",") + comma });
        }
        patches.sort_by_key(|patch| patch.replace.start);
        patches
    }
}

/// The field that limits generated tokens in every server of this API.
fn limit_field(api: Api) -> &'static str {
    match api {
        Api::Responses => "max_output_tokens",
        Api::ChatCompletions | Api::Completions | Api::Messages | Api::CountTokens | Api::Embeddings => "max_tokens",
    }
}

// === impl Reading ===

impl Reading {
    fn new(api: Api) -> Reading {
        let prompt = Prompt {
            model: None,
            model_span: None,
            insert_at: None,
            empty_object: false,
            stream: false,
            include_usage: false,
            max_tokens: None,
            limit_spans: [None, None],
            n: 1,
            previous_response_id: None,
            text: TextWindow::default(),
            images: 0,
            token_ids: 0,
            tool_bytes: 0,
            prompts: 0,
            has_input: false,
            bytes: 0,
        };
        Reading {
            api,
            prompt,
            levels: Levels::default(),
            key: Key::Other,
            has_key: false,
            has_text: false,
            separate: false,
            is_image: false,
            tool_data_at: 0,
            max_completion_tokens: None,
            max_tokens: None,
            not_an_object: false,
            model_has_wrong_type: false,
            input_has_wrong_type: false,
            input_seen: false,
            embeds_seen: false,
        }
    }

    fn body_key(&self, name: &str) -> Key {
        use Api::*;
        match (name, self.api) {
            ("model", _) => Key::Model,
            ("stream", _) => Key::Stream,
            ("stream_options", _) => Key::StreamOptions,
            ("max_completion_tokens", ChatCompletions) => Key::MaxCompletionTokens,
            ("max_tokens", ChatCompletions | Completions | Messages) => Key::MaxTokens,
            ("max_output_tokens", Responses) => Key::MaxTokens,
            ("n", ChatCompletions | Completions) => Key::N,
            ("previous_response_id", Responses) => Key::PreviousResponseId,
            // vLLM embeds a conversation too.
            ("messages", ChatCompletions | Messages | CountTokens | Embeddings) => Key::Messages,
            ("input", Responses) => Key::Messages,
            ("prompt", Completions) | ("input", Embeddings) => Key::Prompts,
            ("prompt_embeds", Completions) => Key::PromptEmbeds,
            ("system", Messages | CountTokens) | ("instructions", Responses) => Key::System,
            ("tools" | "functions", _) => Key::Tools,
            _ => Key::Other,
        }
    }

    /// A field that holds the prompt begins. Repeated, it replaces what its predecessor held; to keep one window, what a system
    /// prompt held goes with it.
    fn begin_input(&mut self, has_wrong_type: bool) {
        self.input_has_wrong_type = has_wrong_type;
        if std::mem::replace(&mut self.input_seen, true) {
            let prompt = &mut self.prompt;
            prompt.text = TextWindow::default();
            (prompt.images, prompt.token_ids, prompt.prompts, prompt.has_input) = (0, 0, 0, false);
            self.has_text = false;
        }
    }

    fn begin_text(&mut self) -> Want {
        self.separate = self.has_text;
        Want::Pieces
    }

    fn begin_prompt(&mut self) {
        self.prompt.has_input = true;
        self.prompt.prompts = self.prompt.prompts.saturating_add(1);
    }

    /// A field that fixes something; `value` is how its type was written.
    fn fix(&mut self, value: Scalar<'_>, span: Range<u64>) {
        let limit = integer(value);
        let span = (limit.is_some() || value == Scalar::Null).then_some(span);
        let [completion_span, tokens_span] = &mut self.prompt.limit_spans;
        match self.key {
            Key::Stream => self.prompt.stream = boolean(value),
            Key::IncludeUsage => self.prompt.include_usage = boolean(value),
            Key::StreamOptions => self.prompt.include_usage = false,
            Key::MaxTokens => (self.max_tokens, *tokens_span) = (limit, span),
            Key::MaxCompletionTokens => (self.max_completion_tokens, *completion_span) = (limit, span),
            Key::N => self.prompt.n = integer(value).unwrap_or(1).max(1),
            _ => {}
        }
    }
}

impl Sink for Reading {
    fn open(&mut self, container: Container, at: u64) {
        use Container::{Array, Object};
        let place = match (self.levels.innermost(), self.key, container) {
            (None, _, Object) => {
                self.prompt.insert_at = Some(at + 1);
                Place::Body
            }
            (None, _, Array) => {
                self.not_an_object = true;
                Place::Elsewhere
            }
            (Some(Place::Body), Key::Model, _) => {
                self.model_has_wrong_type = true;
                Place::Elsewhere
            }
            (Some(Place::Body), Key::Messages, Array) => {
                self.begin_input(false);
                Place::Messages
            }
            (Some(Place::Body), Key::Prompts, Array) => {
                self.begin_input(false);
                Place::Prompts
            }
            (Some(Place::Body), Key::Messages | Key::Prompts, Object) => {
                self.begin_input(true);
                Place::Elsewhere
            }
            (Some(Place::Body), Key::PromptEmbeds, _) => {
                self.embeds_seen = true;
                Place::Elsewhere
            }
            (Some(Place::Body), Key::StreamOptions, Object) => {
                self.prompt.include_usage = false;
                Place::StreamOptions
            }
            (Some(Place::Messages), _, Object) => {
                self.prompt.has_input = true;
                Place::Message
            }
            (Some(Place::Body), Key::System, Array) => Place::Parts,
            (Some(Place::Message | Place::Part), Key::Content, Array) => Place::Parts,
            (Some(Place::Parts), _, Object) => {
                self.is_image = false;
                Place::Part
            }
            (Some(Place::Part), Key::Image, _) => {
                self.is_image = true;
                Place::Elsewhere
            }
            (Some(Place::Prompts), _, Array) => {
                self.begin_prompt();
                Place::TokenIds
            }
            (Some(Place::Body | Place::Message | Place::Part), Key::Tools, _) => {
                self.tool_data_at = at;
                Place::ToolData
            }
            _ => Place::Elsewhere,
        };
        self.levels.push(place);
    }

    fn close(&mut self, end: u64) {
        match self.levels.pop() {
            Some(Place::Body) => self.prompt.empty_object = !self.has_key,
            Some(Place::Part) if std::mem::take(&mut self.is_image) => {
                self.prompt.images = self.prompt.images.saturating_add(1);
            }
            Some(Place::ToolData) => self.prompt.tool_bytes += end.saturating_sub(self.tool_data_at),
            _ => {}
        }
    }

    fn key(&mut self, name: &str) {
        self.has_key = true;
        self.key = match (self.levels.innermost(), name) {
            (Some(Place::Body), _) => self.body_key(name),
            // `output` is what a tool returned, in an item of Responses.
            (Some(Place::Message), "content" | "output") => Key::Content,
            (Some(Place::Message), "tool_calls" | "function_call" | "arguments") => Key::Tools,
            (Some(Place::Part), "text") => Key::Text,
            (Some(Place::Part), "type") => Key::Type,
            (Some(Place::Part), "image_url" | "image") => Key::Image,
            // Blocks of Messages: what a tool returned, and what it was called with.
            (Some(Place::Part), "content") => Key::Content,
            (Some(Place::Part), "input") => Key::Tools,
            (Some(Place::StreamOptions), "include_usage") => Key::IncludeUsage,
            _ => Key::Other,
        };
    }

    fn string(&mut self) -> Want {
        match (self.levels.innermost(), self.key) {
            (None, _) => {
                self.not_an_object = true;
                Want::Nothing
            }
            (Some(Place::Body), Key::Model | Key::PreviousResponseId | Key::Stream) => Want::Whole,
            (Some(Place::Body), Key::MaxTokens | Key::MaxCompletionTokens | Key::N) => Want::Whole,
            (Some(Place::Body), Key::Messages) if self.api != Api::Responses => {
                self.begin_input(true);
                Want::Nothing
            }
            (Some(Place::Body), Key::Messages | Key::Prompts) => {
                self.begin_input(false);
                self.begin_text()
            }
            (Some(Place::Body), Key::PromptEmbeds) => {
                self.embeds_seen = true;
                Want::Nothing
            }
            (Some(Place::Body), Key::System) => self.begin_text(),
            (Some(Place::StreamOptions), Key::IncludeUsage) => Want::Whole,
            (Some(Place::Messages), _) => {
                self.prompt.has_input = true;
                Want::Nothing
            }
            (Some(Place::Message), Key::Content) => self.begin_text(),
            (Some(Place::Parts), _) | (Some(Place::Part), Key::Text | Key::Content) => self.begin_text(),
            (Some(Place::Part), Key::Type) => Want::Whole,
            (Some(Place::Part), Key::Image) => {
                self.is_image = true;
                Want::Nothing
            }
            (Some(Place::Prompts), _) => {
                self.begin_prompt();
                self.begin_text()
            }
            _ => Want::Nothing,
        }
    }

    fn text(&mut self, piece: &str) {
        if piece.is_empty() {
            return;
        }
        if std::mem::take(&mut self.separate) {
            self.prompt.text.push_str("\n");
        }
        self.has_text = true;
        self.prompt.text.push_str(piece);
        if let (Some(Place::Body), Key::Messages | Key::Prompts) = (self.levels.innermost(), self.key) {
            self.prompt.has_input = true;
        }
    }

    fn string_end(&mut self, kept: Kept<'_>, span: Range<u64>) {
        match (self.levels.innermost(), self.key) {
            (Some(Place::Body), Key::Model) => {
                self.model_has_wrong_type = false;
                let cut = if kept.cut { "…" } else { "" };
                self.prompt.model = (!kept.text.is_empty()).then(|| format!("{}{cut}", kept.text));
                self.prompt.model_span = Some(span);
            }
            (Some(Place::Body), Key::PreviousResponseId) => {
                let is_id = !kept.text.is_empty() && !kept.cut;
                self.prompt.previous_response_id = is_id.then(|| kept.text.to_owned());
            }
            (Some(Place::Body | Place::StreamOptions), _) => self.fix(lenient(kept.text), span),
            (Some(Place::Message | Place::Part), Key::Tools) => {
                self.prompt.tool_bytes += span.end.saturating_sub(span.start);
            }
            (Some(Place::Part), Key::Type) => {
                self.is_image |= matches!(kept.text, "image_url" | "input_image" | "image")
            }
            _ => {}
        }
    }

    fn scalar(&mut self, scalar: Scalar<'_>, span: Range<u64>) {
        match (self.levels.innermost(), self.key) {
            (None, _) => self.not_an_object = true,
            (Some(Place::Body), Key::Model) => {
                self.model_has_wrong_type = scalar != Scalar::Null;
                self.prompt.model = None;
                self.prompt.model_span = Some(span);
            }
            (Some(Place::Body), Key::PreviousResponseId) => self.prompt.previous_response_id = None,
            (Some(Place::Body), Key::Messages | Key::Prompts) => self.begin_input(scalar != Scalar::Null),
            (Some(Place::Body | Place::StreamOptions), _) => self.fix(scalar, span),
            (Some(Place::Messages), _) => self.prompt.has_input = true,
            (Some(Place::Prompts | Place::TokenIds), _) => {
                self.prompt.has_input = true;
                self.prompt.token_ids = self.prompt.token_ids.saturating_add(1);
            }
            _ => {}
        }
    }
}

// vLLM's fields are pydantic's, in its lax mode: a number or a flag may come as a string, and a flag as a number.

fn lenient(text: &str) -> Scalar<'_> {
    let is_any = |words: &[&str]| words.iter().any(|word| word.eq_ignore_ascii_case(text));
    if is_any(&["true", "t", "yes", "y", "on"]) { Scalar::Bool(true) } else { Scalar::Number(text) }
}

fn boolean(value: Scalar<'_>) -> bool {
    value == Scalar::Bool(true) || integer(value) == Some(1)
}

/// A whole number; a greater one than the type holds is the type's greatest.
fn integer(value: Scalar<'_>) -> Option<u32> {
    let Scalar::Number(text) = value else { return None };
    let number: f64 = text.trim().parse().ok()?;
    (number >= 0.0 && number.fract() == 0.0).then_some(number as u32)
}

// === impl BodyError ===

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BodyError::Empty => write!(f, "The request has no body."),
            BodyError::InvalidJson { offset } => {
                write!(f, "The body is not valid JSON: unexpected byte or end at {offset}.")
            }
            BodyError::NotAnObject => write!(f, "The body must be a JSON object."),
            BodyError::TooDeep => write!(f, "The body is nested too deeply."),
            BodyError::WrongType(field) => write!(f, "The field '{field}' has the wrong type."),
            BodyError::MissingInput(field) => write!(f, "The field '{field}' is missing or empty."),
        }
    }
}

impl std::error::Error for BodyError {}

#[cfg(test)]
mod tests;
