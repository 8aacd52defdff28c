//! What each value of a request's body means, by where it stands.

mod sink;

use std::ops::Range;

use super::super::{
    Api,
    scan::{Container, Levels, Want},
};
use super::Prompt;
use super::beginning::{self, Of, Value};
use super::lax::{Lax, Written};
use super::limits::{LengthLimits, Name};
use super::unread::Unread;
use crate::features::TextWindow;

/// The prompt as far as it is read, and what is needed to read on.
#[derive(Clone, Debug)]
pub(super) struct BodyReading {
    pub(super) api: Api,
    pub(super) prompt: Prompt,
    levels: Levels<BodyPlace>,
    key: BodyKey,
    has_key: bool,
    has_text: bool,
    /// Whether a separator is due before the next text.
    separate: bool,
    /// Whether the part that is being read is an image or other media.
    is_media: bool,
    /// The hash of the media in the part that is being read.
    media: Option<u64>,
    /// What is read for its hash or its length only.
    value: Option<Value>,
    pub(super) unread: Unread,
    pub(super) limits: LengthLimits,
    pub(super) not_an_object: bool,
    pub(super) model_has_wrong_type: bool,
    pub(super) input_has_wrong_type: bool,
    input_seen: bool,
    /// vLLM's `prompt_embeds`, each of which is a prompt.
    pub(super) embeds: u32,
}

/// Types of parts that are no text, whatever else they hold. Not here: files and documents, which may be text.
const MEDIA_TYPES: [&str; 10] = [
    "image",
    "image_url",
    "input_image",
    "image_embeds",
    "image_pil",
    "audio_url",
    "input_audio",
    "audio_embeds",
    "video",
    "video_url",
];

/// Longest role, name or id that costs no more than its message does, quotes included; a longer one is as good as text.
const WORD_BYTES_MAX: u64 = 66;
/// About what base 64 makes of the embedding of one token: 4,096 numbers of 16 bits.
const EMBEDDING_BYTES: u64 = 4_096 * 2 * 4 / 3;

/// What an open container is.
#[derive(Clone, Copy, Debug, Default)]
enum BodyPlace {
    #[default]
    Elsewhere,
    Body,
    Messages,
    Message,
    Parts,
    Part,
    Prompts,
    TokenIds,
    Embeds,
    StreamOptions,
}

/// What the value that comes next is, inside of an object.
#[derive(Clone, Copy, Debug, Default)]
enum BodyKey {
    #[default]
    Other,
    Model,
    Stream,
    StreamOptions,
    IncludeUsage,
    Limit(Name),
    PreviousResponseId,
    /// The field that holds the conversation: an array of messages or items, for Responses a string too.
    Messages,
    /// The field that holds a prompt or a batch of them: text or token ids.
    Prompts,
    PromptEmbeds,
    TokenIds,
    /// Text beside the conversation: a system prompt or instructions.
    System,
    /// Text that a server puts around or behind the prompt.
    Unread,
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
    /// What a model has thought: text, whatever it looks like.
    Thought,
    /// What no server tokenises: ids, and words that say what the rest is.
    Payload,
    /// The same, of any length.
    Secret,
}

// === impl Reading ===

impl BodyReading {
    pub(super) fn new(api: Api) -> BodyReading {
        BodyReading {
            api,
            prompt: Prompt::empty(),
            levels: Levels::default(),
            key: BodyKey::Other,
            has_key: false,
            has_text: false,
            separate: false,
            is_media: false,
            media: None,
            value: None,
            unread: Unread::default(),
            limits: LengthLimits::default(),
            not_an_object: false,
            model_has_wrong_type: false,
            input_has_wrong_type: false,
            input_seen: false,
            embeds: 0,
        }
    }

    /// Prompts so far, at least 1.
    pub(super) fn prompts(&self, prompt: &Prompt) -> u32 {
        let Prompt { prompts, has_input, .. } = *prompt;
        prompts.max(has_input.into()).saturating_add(self.embeds).max(1)
    }

    fn body_key(&self, name: &str) -> BodyKey {
        use Api::*;
        match (name, self.api) {
            ("model", _) => BodyKey::Model,
            (_, api) if api.is_guessed() => BodyKey::Unread,
            ("stream", _) => BodyKey::Stream,
            ("stream_options", _) => BodyKey::StreamOptions,
            ("max_completion_tokens", ChatCompletions) => BodyKey::Limit(Name::MaxCompletionTokens),
            ("max_tokens", ChatCompletions | Completions | Messages) => BodyKey::Limit(Name::MaxTokens),
            ("max_output_tokens", Responses) => BodyKey::Limit(Name::MaxTokens),
            ("min_tokens", ChatCompletions | Completions) => BodyKey::Limit(Name::MinTokens),
            ("n", ChatCompletions | Completions) => BodyKey::Limit(Name::N),
            ("best_of", ChatCompletions | Completions) => BodyKey::Limit(Name::BestOf),
            ("suffix", Completions) => BodyKey::Unread,
            // Servers that take a rendered prompt beside the conversation, or the conversation before it.
            ("input_ids" | "prompt_token_ids", _) => BodyKey::TokenIds,
            ("prompt_token_ids_b64" | "previous_input_messages", _) => BodyKey::Unread,
            ("previous_response_id", Responses) => BodyKey::PreviousResponseId,
            // vLLM embeds a conversation too.
            ("messages", ChatCompletions | Messages | CountTokens | Embeddings) => BodyKey::Messages,
            ("input", Responses) => BodyKey::Messages,
            ("prompt", Completions) | ("input", Embeddings) => BodyKey::Prompts,
            ("prompt_embeds", Completions) => BodyKey::PromptEmbeds,
            ("system", Messages | CountTokens) | ("instructions", Responses) => BodyKey::System,
            _ => beginning::field(name).map_or(BodyKey::Other, BodyKey::Field),
        }
    }

    /// A field that holds the prompt begins. Repeated, it replaces what its predecessor held; to keep one window, what a system
    /// prompt held goes with it.
    fn begin_input(&mut self, has_wrong_type: bool) {
        self.input_has_wrong_type = has_wrong_type;
        if std::mem::replace(&mut self.input_seen, true) {
            let prompt = &mut self.prompt;
            let replaced = prompt.text.tokens_to_read().saturating_add(prompt.token_ids);
            prompt.replaced_tokens = prompt.replaced_tokens.saturating_add(replaced);
            prompt.text = TextWindow::default();
            prompt.prefix.clear_conversation();
            (prompt.media_parts, prompt.token_ids, prompt.prompts, prompt.has_input) = (0, 0, 0, false);
            self.has_text = false;
        }
    }

    fn begin_text(&mut self) -> Want {
        self.separate = self.has_text;
        self.prompt.prefix.begin_text();
        Want::Pieces
    }

    /// A value begins, of which the hash or the length counts if this is a place for one.
    fn begin_value(&mut self, at: u64) {
        let of = match (self.levels.innermost(), self.key) {
            (Some(BodyPlace::Body), BodyKey::Field(field)) => Of::Field(field),
            (Some(BodyPlace::Body), BodyKey::Unread | BodyKey::System) => Of::Unread,
            (Some(BodyPlace::Message | BodyPlace::Part), BodyKey::ToolCall) => Of::ToolCall,
            (Some(BodyPlace::Part), BodyKey::Image | BodyKey::Media) => Of::Media,
            (Some(BodyPlace::Message | BodyPlace::Part), BodyKey::Payload | BodyKey::Secret) => return,
            (
                Some(
                    BodyPlace::Messages | BodyPlace::Message | BodyPlace::Parts | BodyPlace::Part | BodyPlace::TokenIds,
                ),
                _,
            ) => Of::Unread,
            _ => return,
        };
        self.is_media |= matches!(self.key, BodyKey::Image);
        if of.is_unread() {
            // What a template may render as it is has no payloads.
            let is_certain =
                matches!((self.levels.innermost(), of), (Some(BodyPlace::Body), Of::Field(_) | Of::Unread));
            self.unread.begin(is_certain && !self.api.is_guessed());
        }
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
            Of::Media => {
                self.media = Some(value.hash());
                self.is_media |= !self.unread.is_text();
            }
            Of::Unread => {}
        }
        if value.of.is_tool_data() {
            self.prompt.tool_bytes += end.saturating_sub(value.at);
        }
    }

    /// What a list or an object is that is a field's value.
    fn place_in_body(&mut self, container: Container, at: u64) -> BodyPlace {
        use Container::{Array, Object};
        match (self.key, container) {
            (BodyKey::Model, _) => self.model_has_wrong_type = true,
            (BodyKey::Messages, Array) => {
                self.begin_input(false);
                return BodyPlace::Messages;
            }
            (BodyKey::Prompts, Array) => {
                self.begin_input(false);
                return BodyPlace::Prompts;
            }
            // SGLang and vLLM embed parts, too.
            (BodyKey::Prompts, Object) if self.api == Api::Embeddings => {
                self.begin_input(false);
                self.begin_prompt();
                return self.begin_part();
            }
            (BodyKey::Messages | BodyKey::Prompts, Object) => self.begin_input(true),
            (BodyKey::PromptEmbeds, _) => {
                self.embeds = 0;
                return BodyPlace::Embeds;
            }
            (BodyKey::TokenIds, Array) => return BodyPlace::TokenIds,
            (BodyKey::Limit(name), _) => self.limits.set_container(name),
            (BodyKey::StreamOptions, Object) => {
                self.prompt.include_usage = false;
                return BodyPlace::StreamOptions;
            }
            (BodyKey::System, Array) => {
                self.prompt.prefix.begin_system();
                return BodyPlace::Parts;
            }
            _ => self.begin_value(at),
        }
        BodyPlace::Elsewhere
    }

    /// What a list or an object is that stands deeper.
    fn place_within(&mut self, place: BodyPlace, container: Container, at: u64) -> BodyPlace {
        use Container::{Array, Object};
        match (place, self.key, container) {
            (BodyPlace::Messages | BodyPlace::Parts, _, _) if self.levels.is_last() => {
                self.begin_value(at);
                BodyPlace::Elsewhere
            }
            (BodyPlace::Messages, _, Object) => {
                self.prompt.has_input = true;
                self.prompt.messages = self.prompt.messages.saturating_add(1);
                self.prompt.prefix.begin_message();
                BodyPlace::Message
            }
            (BodyPlace::Message | BodyPlace::Part, BodyKey::Content, Array) => BodyPlace::Parts,
            (BodyPlace::Parts, _, Object) => self.begin_part(),
            (BodyPlace::Prompts, _, Object) => {
                self.begin_prompt();
                self.begin_part()
            }
            (BodyPlace::Prompts, _, Array) => {
                self.begin_prompt();
                BodyPlace::TokenIds
            }
            (BodyPlace::TokenIds, _, Array) => BodyPlace::TokenIds,
            _ => {
                self.begin_value(at);
                BodyPlace::Elsewhere
            }
        }
    }

    /// Whether the string that begins is read for what it says.
    fn is_read(&self) -> bool {
        matches!(
            (self.levels.innermost(), self.key),
            (Some(BodyPlace::Message), BodyKey::Content | BodyKey::Role | BodyKey::Name)
                | (Some(BodyPlace::Body), BodyKey::System)
                | (Some(BodyPlace::Parts), _)
                | (Some(BodyPlace::Part), BodyKey::Text | BodyKey::Content | BodyKey::Name | BodyKey::Type)
        )
    }

    fn begin_part(&mut self) -> BodyPlace {
        (self.is_media, self.media) = (false, None);
        BodyPlace::Part
    }

    fn begin_prompt(&mut self) {
        self.prompt.has_input = true;
        self.prompt.prompts = self.prompt.prompts.saturating_add(1);
    }

    /// A field that fixes something.
    fn fix(&mut self, value: Written<'_>, span: Range<u64>) {
        match self.key {
            BodyKey::Stream => self.prompt.stream = value.boolean() == Lax::Value(true),
            BodyKey::IncludeUsage => self.prompt.include_usage = value.boolean() == Lax::Value(true),
            BodyKey::StreamOptions => self.prompt.include_usage = false,
            BodyKey::Limit(name) => self.limits.set(name, value, span),
            _ => {}
        }
    }
}
