//! What a request's body fixes, and a bounded window of its text, in one linear pass.

mod beginning;
mod body_error;
mod lax;
mod limits;
mod patch;
mod reading;
mod unread;

use std::ops::Range;

pub use body_error::BodyError;
pub use patch::{Patch, PatchPlaces, patched, patched_length};

use reading::BodyReading;

use super::{
    Api,
    form::{self, Form},
    scan::{ScanFailure, Scanner},
};
use crate::affinity::Prefix;
use crate::features::{TextCount, TextWindow};

/// What routing reads of a request's body. Offsets count bytes from the body's start.
#[derive(Clone, Debug)]
pub struct Prompt {
    /// The model that the client named; None if it named none (null and `""` name none, as in vLLM). A name of more than
    /// 256 bytes is cut and ends in `…`, so that it matches no model.
    pub model: Option<String>,
    /// The model that the body itself names, where the path names another.
    pub body_model: Option<String>,
    /// Whether the body is a form, in which a name stands without quotes.
    pub is_form: bool,
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
    /// The limit of each answer's tokens: `max_completion_tokens` or `max_tokens`, or `max_output_tokens`; what the API says where the
    /// client says nothing. None where there is no limit; 0 is none, as in SGLang.
    pub max_tokens: Option<u32>,
    /// Whether every server reads `max_tokens` as it is read here.
    pub max_tokens_is_plain: bool,
    /// Where the values of the fields that limit generated tokens stand, the last of each: `max_completion_tokens`, and
    /// `max_tokens` or `max_output_tokens`.
    pub limit_spans: [Option<Range<u64>>; 2],
    /// Tokens that each answer must have, 0 if the client does not say.
    pub min_tokens: u32,
    /// Answers per prompt, at least 1.
    pub n: u32,
    /// The earlier response that this one continues; only the instance that made it knows it.
    pub previous_response_id: Option<String>,
    /// The text of all messages, instructions and prompts in the body's order, pieces separated by a line feed.
    pub text: TextWindow,
    /// The beginning of the prompt in the order of chat templates, as instances may have kept it.
    pub prefix: Prefix,
    /// Images, audio, videos and files, which are counted and not read.
    pub media_parts: u32,
    /// Strings that stand in no field for text, and that a server may put into its prompt all the same.
    pub unread: TextCount,
    /// Messages and items, each of which costs a few tokens whatever it says.
    pub messages: u32,
    /// Estimated tokens of text that a repeated field has replaced: a system prompt beside it may count all the same.
    pub replaced_tokens: u64,
    /// Tokens of prompts that are given as token ids or embeddings.
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
    reading: BodyReading,
    form: Option<Form>,
}

// === impl RequestScan ===

impl RequestScan {
    /// Expects a body of this API.
    pub fn new(api: Api) -> RequestScan {
        RequestScan { scanner: Scanner::default(), reading: BodyReading::new(api), form: None }
    }

    /// Expects a body of this API in the form that its content type says.
    pub fn of_type(api: Api, content_type: &str) -> RequestScan {
        let boundary = form::boundary(content_type).filter(|_| api == Api::Named);
        RequestScan { form: boundary.map(Form::new), ..RequestScan::new(api) }
    }

    /// Reads the next piece, wherever it is cut.
    pub fn push(&mut self, bytes: &[u8]) {
        match &mut self.form {
            Some(form) => form.push(bytes),
            None => self.scanner.push(bytes, &mut self.reading),
        }
    }

    /// Says that the body ended, and takes the prompt out.
    pub fn finish(&mut self) -> Result<Prompt, BodyError> {
        if self.form.is_some() {
            return Ok(self.so_far());
        }
        let RequestScan { scanner, reading, .. } = self;
        match scanner.finish(reading) {
            Err(_) if scanner.is_blank() => return Err(BodyError::Empty),
            Err(ScanFailure::Syntax { offset }) => return Err(BodyError::InvalidJson { offset }),
            Err(ScanFailure::TooDeep) => return Err(BodyError::TooDeep),
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
        if let Some(field) = reading.limits.unreadable() {
            return Err(BodyError::WrongType(field));
        }
        let begun = std::mem::replace(&mut reading.prompt, Prompt::empty());
        let prompt = self.prompt(begun);
        if prompt.has_input || self.reading.api.is_guessed() { Ok(prompt) } else { Err(BodyError::MissingInput(input)) }
    }

    /// The prompt as far as it was read: for a body that is too large to see whole.
    pub fn so_far(&self) -> Prompt {
        self.prompt(self.reading.prompt.clone())
    }

    /// The prompt that has `begun` in the fields that are known only now.
    fn prompt(&self, mut begun: Prompt) -> Prompt {
        begun.text.settle();
        let reading = &self.reading;
        let model = match &self.form {
            Some(form) => form.model().cloned().unzip(),
            None => (begun.model.take(), begun.model_span.take()),
        };
        Prompt {
            body_model: model.0.clone(),
            model: model.0.filter(|name| !name.is_empty()),
            is_form: self.form.is_some(),
            model_span: model.1,
            max_tokens: reading.limits.max_tokens(reading.api),
            max_tokens_is_plain: reading.limits.are_plain(),
            limit_spans: reading.limits.spans(),
            min_tokens: reading.limits.min_tokens(),
            n: reading.limits.answers(),
            unread: reading.unread.count().clone(),
            prompts: reading.prompts(&begun),
            has_input: begun.has_input || reading.embeds > 0,
            bytes: self.form.as_ref().map_or(self.scanner.bytes(), Form::bytes),
            ..begun
        }
    }
}

impl Prompt {
    /// Nothing has been read yet.
    fn empty() -> Prompt {
        Prompt {
            model: None,
            body_model: None,
            is_form: false,
            model_span: None,
            insert_at: None,
            empty_object: false,
            stream: false,
            include_usage: false,
            max_tokens: None,
            max_tokens_is_plain: false,
            limit_spans: [None, None],
            min_tokens: 0,
            n: 1,
            previous_response_id: None,
            text: TextWindow::default(),
            prefix: Prefix::default(),
            media_parts: 0,
            unread: TextCount::default(),
            messages: 0,
            replaced_tokens: 0,
            token_ids: 0,
            tool_bytes: 0,
            prompts: 0,
            has_input: false,
            bytes: 0,
        }
    }

    /// The path names the model, whatever the body does.
    pub fn deploy(&mut self, model: String) {
        self.model = Some(model);
    }
}

/// The field that must hold the prompt.
fn input_field(api: Api) -> &'static str {
    match api {
        Api::ChatCompletions | Api::Messages | Api::CountTokens => "messages",
        Api::Completions => "prompt",
        _ => "input",
    }
}

#[cfg(test)]
mod tests;
