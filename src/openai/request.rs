//! What a request's body fixes, and a bounded window of its text, in one linear pass.

mod beginning;
mod body_error;
mod lax;
mod patch;

use std::ops::Range;

pub use body_error::BodyError;
pub use patch::{Patch, patched};

use beginning::{Of, Value, scalar_hash, text_hash};
use lax::{boolean, integer, lenient};

use super::{
    Api,
    scan::{Container, Failure, Kept, Levels, Scalar, Scanner, Sink, Want},
};
use crate::affinity::Prefix;
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
    /// The beginning of the prompt in the order of chat templates, as instances may have kept it.
    pub prefix: Prefix,
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
    /// The hash of the media in the part that is being read.
    media: Option<u64>,
    /// What is read for its hash only.
    value: Option<Value>,
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
    /// One of the fields that change how the prompt begins.
    Field(usize),
    ToolCall,
    Role,
    Name,
    Content,
    Text,
    Type,
    Image,
    Media,
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
            prefix: Prefix::default(),
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
            media: None,
            value: None,
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
            _ => beginning::field(name).map_or(Key::Other, Key::Field),
        }
    }

    /// A field that holds the prompt begins. Repeated, it replaces what its predecessor held; to keep one window, what a system
    /// prompt held goes with it.
    fn begin_input(&mut self, has_wrong_type: bool) {
        self.input_has_wrong_type = has_wrong_type;
        if std::mem::replace(&mut self.input_seen, true) {
            let prompt = &mut self.prompt;
            prompt.text = TextWindow::default();
            prompt.prefix.clear_conversation();
            (prompt.images, prompt.token_ids, prompt.prompts, prompt.has_input) = (0, 0, 0, false);
            self.has_text = false;
        }
    }

    fn begin_text(&mut self) -> Want {
        self.separate = self.has_text;
        self.prompt.prefix.begin_text();
        Want::Pieces
    }

    /// A value begins, of which the hash counts if this is a place for one.
    fn begin_value(&mut self, at: u64) {
        let of = match (self.levels.innermost(), self.key) {
            (Some(Place::Body), Key::Field(field)) => Of::Field(field),
            (Some(Place::Message | Place::Part), Key::ToolCall) => Of::ToolCall,
            (Some(Place::Part), Key::Image | Key::Media) => Of::Media,
            _ => return,
        };
        self.is_image |= matches!(self.key, Key::Image);
        self.value = Some(Value::new(of, at));
    }

    /// The value that is read for its hash may have ended.
    fn end_value(&mut self, end: u64) {
        let Some(value) = self.value.take_if(|value| value.is_whole()) else { return };
        let prefix = &mut self.prompt.prefix;
        match value.of {
            Of::Field(field) => {
                prefix.field(field, value.hash(), if value.of.is_in_prompt() { value.bytes() } else { 0 });
            }
            Of::ToolCall => prefix.detail(value.hash()),
            Of::Media => self.media = Some(value.hash()),
        }
        if value.of.is_tool_data() {
            self.prompt.tool_bytes += end.saturating_sub(value.at);
        }
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
        if let Some(value) = &mut self.value {
            value.open(container);
            return self.levels.push(Place::Elsewhere);
        }
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
                self.prompt.prefix.begin_message();
                Place::Message
            }
            (Some(Place::Body), Key::System, Array) => {
                self.prompt.prefix.begin_system();
                Place::Parts
            }
            (Some(Place::Message | Place::Part), Key::Content, Array) => Place::Parts,
            (Some(Place::Parts), _, Object) => {
                (self.is_image, self.media) = (false, None);
                Place::Part
            }
            (Some(Place::Prompts), _, Array) => {
                self.begin_prompt();
                Place::TokenIds
            }
            _ => {
                self.begin_value(at);
                Place::Elsewhere
            }
        };
        if let Some(value) = &mut self.value {
            value.open(container);
        }
        self.levels.push(place);
    }

    fn close(&mut self, end: u64) {
        let place = self.levels.pop();
        if let Some(value) = &mut self.value {
            value.close();
            return self.end_value(end);
        }
        match place {
            Some(Place::Body) => self.prompt.empty_object = !self.has_key,
            Some(Place::Message) => self.prompt.prefix.end_message(),
            Some(Place::Part) => {
                let is_image = std::mem::take(&mut self.is_image);
                self.prompt.images = self.prompt.images.saturating_add(is_image.into());
                if let Some(media) = self.media.take().or(is_image.then_some(0)) {
                    self.prompt.prefix.media(media);
                }
            }
            // The only parts in the body itself.
            Some(Place::Parts) if matches!(self.levels.innermost(), Some(Place::Body)) => {
                self.prompt.prefix.end_system();
            }
            _ => {}
        }
    }

    fn key(&mut self, name: &str) {
        self.has_key = true;
        if let Some(value) = &mut self.value {
            value.key(name);
        }
        self.key = match (self.levels.innermost(), name) {
            (Some(Place::Body), _) => self.body_key(name),
            // `output` is what a tool returned, in an item of Responses.
            (Some(Place::Message), "content" | "output") => Key::Content,
            (Some(Place::Message), "role") => Key::Role,
            (Some(Place::Message), "tool_calls" | "function_call" | "arguments") => Key::ToolCall,
            (Some(Place::Message | Place::Part), "name") => Key::Name,
            (Some(Place::Part), "text") => Key::Text,
            (Some(Place::Part), "type") => Key::Type,
            (Some(Place::Part), "image_url" | "image") => Key::Image,
            // Blocks of Messages: what a tool returned, and what it was called with.
            (Some(Place::Part), "content") => Key::Content,
            (Some(Place::Part), "input") => Key::ToolCall,
            (Some(Place::Part), "source" | "input_audio" | "audio_url" | "video_url" | "file" | "file_data") => {
                Key::Media
            }
            (Some(Place::StreamOptions), "include_usage") => Key::IncludeUsage,
            _ => Key::Other,
        };
    }

    fn string(&mut self) -> Want {
        if self.value.is_none() {
            // Where it begins is known at its end.
            self.begin_value(0);
        }
        if let Some(value) = &mut self.value {
            value.string();
            return Want::Pieces;
        }
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
            (Some(Place::Body), Key::Messages) => {
                self.begin_input(false);
                self.prompt.prefix.begin_message();
                self.prompt.prefix.role("user");
                self.begin_text()
            }
            (Some(Place::Body), Key::Prompts) => {
                self.begin_input(false);
                self.begin_text()
            }
            (Some(Place::Body), Key::PromptEmbeds) => {
                self.embeds_seen = true;
                Want::Nothing
            }
            (Some(Place::Body), Key::System) => {
                self.prompt.prefix.begin_system();
                self.begin_text()
            }
            (Some(Place::StreamOptions), Key::IncludeUsage) => Want::Whole,
            (Some(Place::Messages), _) => {
                self.prompt.has_input = true;
                Want::Nothing
            }
            (Some(Place::Message), Key::Content) => self.begin_text(),
            (Some(Place::Message), Key::Role) | (Some(Place::Message | Place::Part), Key::Name) => Want::Whole,
            (Some(Place::Parts), _) | (Some(Place::Part), Key::Text | Key::Content) => self.begin_text(),
            (Some(Place::Part), Key::Type) => Want::Whole,
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
        if let Some(value) = &mut self.value {
            return value.text(piece);
        }
        if std::mem::take(&mut self.separate) {
            self.prompt.text.push_str("\n");
        }
        self.has_text = true;
        self.prompt.text.push_str(piece);
        self.prompt.prefix.push(piece.as_bytes());
        if let (Some(Place::Body), Key::Messages | Key::Prompts) = (self.levels.innermost(), self.key) {
            self.prompt.has_input = true;
        }
    }

    fn string_end(&mut self, kept: Kept<'_>, span: Range<u64>) {
        if let Some(value) = &mut self.value {
            value.string_end(span.start);
            return self.end_value(span.end);
        }
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
                self.prompt.prefix.field(beginning::PREVIOUS_RESPONSE, text_hash(kept.text), 0);
            }
            (Some(Place::Body), Key::System) => self.prompt.prefix.end_system(),
            (Some(Place::Body), Key::Messages) => self.prompt.prefix.end_message(),
            (Some(Place::Body | Place::StreamOptions), _) => self.fix(lenient(kept.text), span),
            (Some(Place::Message), Key::Role) => self.prompt.prefix.role(kept.text),
            (Some(Place::Message | Place::Part), Key::Name) => self.prompt.prefix.detail(text_hash(kept.text)),
            (Some(Place::Part), Key::Type) => {
                self.is_image |= matches!(kept.text, "image_url" | "input_image" | "image");
                if kept.text == "tool_result" {
                    self.prompt.prefix.detail(text_hash(kept.text));
                }
            }
            _ => {}
        }
    }

    fn scalar(&mut self, scalar: Scalar<'_>, span: Range<u64>) {
        if let Some(value) = &mut self.value {
            return value.scalar(scalar);
        }
        match (self.levels.innermost(), self.key) {
            (None, _) => self.not_an_object = true,
            (Some(Place::Body), Key::Model) => {
                self.model_has_wrong_type = scalar != Scalar::Null;
                self.prompt.model = None;
                self.prompt.model_span = Some(span);
            }
            (Some(Place::Body), Key::PreviousResponseId) => {
                self.prompt.previous_response_id = None;
                self.prompt.prefix.field(beginning::PREVIOUS_RESPONSE, 0, 0);
            }
            (Some(Place::Body), Key::System) => self.prompt.prefix.clear_system(),
            (Some(Place::Body), Key::Field(field)) => self.prompt.prefix.field(field, scalar_hash(scalar), 0),
            (Some(Place::Body), Key::Messages | Key::Prompts) => self.begin_input(scalar != Scalar::Null),
            (Some(Place::Body | Place::StreamOptions), _) => self.fix(scalar, span),
            (Some(Place::Messages), _) => self.prompt.has_input = true,
            (Some(Place::Prompts | Place::TokenIds), _) => {
                self.prompt.has_input = true;
                self.prompt.token_ids = self.prompt.token_ids.saturating_add(1);
                if let Scalar::Number(id) = scalar {
                    self.prompt.prefix.token_id(id);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
