//! The events of the scanner, as they come.

use std::ops::Range;

use super::super::super::scan::{Container, Kept, Scalar, Sink, Want};
use super::super::beginning::{self, Of, scalar_hash, text_hash};
use super::super::lax::Written;
use super::super::unread::{is_payload, is_secret};
use super::{Api, BodyKey, BodyPlace, BodyReading, EMBEDDING_BYTES, MEDIA_TYPES, WORD_BYTES_MAX};

impl Sink for BodyReading {
    fn open(&mut self, container: Container, at: u64) {
        if let Some(value) = &mut self.value {
            value.open(container);
            if value.of.is_unread() {
                self.unread.open();
            }
            return self.levels.push(BodyPlace::Elsewhere);
        }
        let place = match self.levels.innermost() {
            None if container == Container::Object => {
                self.prompt.insert_at = Some(at + 1);
                BodyPlace::Body
            }
            None => {
                self.not_an_object = true;
                BodyPlace::Elsewhere
            }
            Some(BodyPlace::Body) => self.place_in_body(container, at),
            Some(place) => self.place_within(place, container, at),
        };
        if let Some(value) = &mut self.value {
            value.open(container);
            if value.of.is_unread() {
                self.unread.open();
            }
        }
        self.levels.push(place);
    }

    fn close(&mut self, end: u64) {
        let place = self.levels.pop();
        if let Some(value) = &mut self.value {
            value.close();
            if value.of.is_unread() {
                self.unread.close();
            }
            return self.end_value(end);
        }
        match place {
            Some(BodyPlace::Body) => self.prompt.empty_object = !self.has_key,
            Some(BodyPlace::Message) => self.prompt.prefix.end_message(),
            Some(BodyPlace::Part) => {
                let is_media = std::mem::take(&mut self.is_media);
                self.prompt.media_parts = self.prompt.media_parts.saturating_add(is_media.into());
                if let Some(media) = self.media.take().or(is_media.then_some(0)) {
                    self.prompt.prefix.media(media);
                }
            }
            // The only parts in the body itself.
            Some(BodyPlace::Parts) if matches!(self.levels.innermost(), Some(BodyPlace::Body)) => {
                self.prompt.prefix.end_system();
            }
            _ => {}
        }
    }

    fn key(&mut self, name: &str) {
        self.has_key = true;
        if let Some(value) = &mut self.value {
            value.key(name);
            if value.of.is_unread() {
                self.unread.key(name);
            }
        }
        self.key = match (self.levels.innermost(), name) {
            (Some(BodyPlace::Body), _) => self.body_key(name),
            // `output` is what a tool returned, in an item of Responses.
            (Some(BodyPlace::Message), "content" | "output") => BodyKey::Content,
            (Some(BodyPlace::Message), "role") => BodyKey::Role,
            (Some(BodyPlace::Message), "tool_calls" | "function_call" | "arguments") => BodyKey::ToolCall,
            (Some(BodyPlace::Message | BodyPlace::Part), "name") => BodyKey::Name,
            (Some(BodyPlace::Part), "text") => BodyKey::Text,
            (Some(BodyPlace::Part), "type") => BodyKey::Type,
            (Some(BodyPlace::Part), "image_url" | "image") => BodyKey::Image,
            // Blocks of Messages: what a tool returned, and what it was called with.
            (Some(BodyPlace::Part), "content") => BodyKey::Content,
            (Some(BodyPlace::Part), "input") => BodyKey::ToolCall,
            (Some(BodyPlace::Part), "source" | "input_audio" | "audio_url" | "video_url" | "file" | "file_data") => {
                BodyKey::Media
            }
            (
                Some(BodyPlace::Message | BodyPlace::Part),
                "reasoning_content" | "reasoning" | "thinking" | "refusal",
            ) => BodyKey::Thought,
            (Some(BodyPlace::Message | BodyPlace::Part), name) if is_secret(name) => BodyKey::Secret,
            (Some(BodyPlace::Message | BodyPlace::Part), name) if is_payload(name) => BodyKey::Payload,
            (Some(BodyPlace::StreamOptions), "include_usage") => BodyKey::IncludeUsage,
            _ => BodyKey::Other,
        };
    }

    fn string(&mut self) -> Want {
        self.prompt.has_input |= matches!(self.levels.innermost(), Some(BodyPlace::Messages));
        if self.value.is_none() && !self.is_read() {
            // Where it begins is known at its end.
            self.begin_value(0);
        }
        if let Some(value) = &mut self.value {
            value.string();
            if value.of.is_unread() {
                let is_certain = matches!(self.key, BodyKey::Thought) && value.is_whole();
                self.unread.string(is_certain, value.of == Of::Media && value.is_whole());
            }
            return Want::Pieces;
        }
        match (self.levels.innermost(), self.key) {
            (None, _) => {
                self.not_an_object = true;
                Want::Nothing
            }
            (Some(BodyPlace::Body), BodyKey::Model | BodyKey::PreviousResponseId | BodyKey::Stream) => Want::Whole,
            (Some(BodyPlace::Body), BodyKey::Limit(_)) => Want::Whole,
            (Some(BodyPlace::Body), BodyKey::Messages) if self.api != Api::Responses => {
                self.begin_input(true);
                Want::Nothing
            }
            (Some(BodyPlace::Body), BodyKey::Messages) => {
                self.begin_input(false);
                self.prompt.prefix.begin_message();
                self.prompt.prefix.role("user");
                self.begin_text()
            }
            (Some(BodyPlace::Body), BodyKey::Prompts) => {
                self.begin_input(false);
                // An embedding of nothing is one, too: of what the tokenizer puts around it.
                self.prompt.has_input |= self.api == Api::Embeddings;
                self.begin_text()
            }
            (Some(BodyPlace::Body), BodyKey::PromptEmbeds) => {
                self.embeds = 1;
                Want::Nothing
            }
            (Some(BodyPlace::Embeds), _) => {
                self.embeds = self.embeds.saturating_add(1);
                Want::Nothing
            }
            (Some(BodyPlace::Body), BodyKey::System) => {
                self.prompt.prefix.begin_system();
                self.begin_text()
            }
            (Some(BodyPlace::StreamOptions), BodyKey::IncludeUsage) => Want::Whole,
            (Some(BodyPlace::Message), BodyKey::Content) => self.begin_text(),
            (Some(BodyPlace::Message), BodyKey::Role) | (Some(BodyPlace::Message | BodyPlace::Part), BodyKey::Name) => {
                Want::Whole
            }
            (Some(BodyPlace::Parts), _) | (Some(BodyPlace::Part), BodyKey::Text | BodyKey::Content) => {
                self.begin_text()
            }
            (Some(BodyPlace::Part), BodyKey::Type) => Want::Whole,
            (Some(BodyPlace::Prompts), _) => {
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
            if value.of.is_unread() {
                self.unread.text(piece);
            }
            return value.text(piece);
        }
        if std::mem::take(&mut self.separate) {
            self.prompt.text.push_str("\n");
        }
        self.has_text = true;
        self.prompt.text.push_str(piece);
        self.prompt.prefix.push(piece.as_bytes());
        if let (Some(BodyPlace::Body), BodyKey::Messages | BodyKey::Prompts) = (self.levels.innermost(), self.key) {
            self.prompt.has_input = true;
        }
    }

    fn string_end(&mut self, kept: Kept<'_>, span: Range<u64>) {
        if let Some(value) = &mut self.value {
            value.string_end(span.start);
            if value.of.is_unread() {
                self.unread.string_end();
            }
            return self.end_value(span.end);
        }
        let length = span.end.saturating_sub(span.start);
        match (self.levels.innermost(), self.key) {
            (
                Some(BodyPlace::Message | BodyPlace::Part),
                BodyKey::Role | BodyKey::Name | BodyKey::Type | BodyKey::Payload,
            ) if length > WORD_BYTES_MAX => {
                self.prompt.tool_bytes = self.prompt.tool_bytes.saturating_add(length);
            }
            (Some(BodyPlace::Body), BodyKey::PromptEmbeds) | (Some(BodyPlace::Embeds), _) => {
                self.prompt.token_ids = self.prompt.token_ids.saturating_add(length / EMBEDDING_BYTES);
            }
            _ => {}
        }
        match (self.levels.innermost(), self.key) {
            (Some(BodyPlace::Body), BodyKey::Model) => {
                self.model_has_wrong_type = false;
                let cut = if kept.cut { "…" } else { "" };
                self.prompt.model = (!kept.text.is_empty()).then(|| format!("{}{cut}", kept.text));
                self.prompt.model_span = Some(span);
            }
            (Some(BodyPlace::Body), BodyKey::PreviousResponseId) => {
                let is_id = !kept.text.is_empty() && !kept.cut;
                self.prompt.previous_response_id = is_id.then(|| kept.text.to_owned());
                self.prompt.prefix.field(beginning::PREVIOUS_RESPONSE, text_hash(kept.text), 0);
            }
            (Some(BodyPlace::Body), BodyKey::System) => self.prompt.prefix.end_system(),
            (Some(BodyPlace::Body), BodyKey::Messages) => self.prompt.prefix.end_message(),
            // A number that is too long to be kept is none that can be relied on.
            (Some(BodyPlace::Body | BodyPlace::StreamOptions), _) => {
                self.fix(Written::Text(if kept.cut { "" } else { kept.text }), span);
            }
            (Some(BodyPlace::Message), BodyKey::Role) => self.prompt.prefix.role(kept.text),
            (Some(BodyPlace::Message | BodyPlace::Part), BodyKey::Name) => {
                self.prompt.prefix.detail(text_hash(kept.text))
            }
            (Some(BodyPlace::Part), BodyKey::Type) => {
                self.is_media |= MEDIA_TYPES.contains(&kept.text);
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
            (Some(BodyPlace::Body), BodyKey::Model) => {
                self.model_has_wrong_type = scalar != Scalar::Null;
                self.prompt.model = None;
                self.prompt.model_span = Some(span);
            }
            (Some(BodyPlace::Body), BodyKey::PreviousResponseId) => {
                self.prompt.previous_response_id = None;
                self.prompt.prefix.field(beginning::PREVIOUS_RESPONSE, 0, 0);
            }
            (Some(BodyPlace::Body), BodyKey::System) => self.prompt.prefix.clear_system(),
            (Some(BodyPlace::Body), BodyKey::Field(field)) => self.prompt.prefix.field(field, scalar_hash(scalar), 0),
            (Some(BodyPlace::Body), BodyKey::Messages | BodyKey::Prompts) => self.begin_input(scalar != Scalar::Null),
            (Some(BodyPlace::Body | BodyPlace::StreamOptions), _) => self.fix(Written::Scalar(scalar), span),
            (Some(BodyPlace::Messages), _) => self.prompt.has_input = true,
            (Some(BodyPlace::Prompts | BodyPlace::TokenIds), _) => {
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
