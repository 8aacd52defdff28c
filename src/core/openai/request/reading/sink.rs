//! The events of the scanner, as they come.

use std::ops::Range;

use super::super::super::scan::{Container, Kept, Scalar, Sink, Want};
use super::super::beginning::{self, Of, scalar_hash, text_hash};
use super::super::lax::Written;
use super::super::unread::{is_payload, is_secret};
use super::{Api, EMBEDDING_BYTES, Key, MEDIA_TYPES, Place, Reading, WORD_BYTES_MAX};

impl Sink for Reading {
    fn open(&mut self, container: Container, at: u64) {
        if let Some(value) = &mut self.value {
            value.open(container);
            if value.of.is_unread() {
                self.unread.open();
            }
            return self.levels.push(Place::Elsewhere);
        }
        let place = match self.levels.innermost() {
            None if container == Container::Object => {
                self.prompt.insert_at = Some(at + 1);
                Place::Body
            }
            None => {
                self.not_an_object = true;
                Place::Elsewhere
            }
            Some(Place::Body) => self.place_in_body(container, at),
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
            Some(Place::Body) => self.prompt.empty_object = !self.has_key,
            Some(Place::Message) => self.prompt.prefix.end_message(),
            Some(Place::Part) => {
                let is_media = std::mem::take(&mut self.is_media);
                self.prompt.media_parts = self.prompt.media_parts.saturating_add(is_media.into());
                if let Some(media) = self.media.take().or(is_media.then_some(0)) {
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
            if value.of.is_unread() {
                self.unread.key(name);
            }
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
            (Some(Place::Message | Place::Part), "reasoning_content" | "reasoning" | "thinking" | "refusal") => {
                Key::Thought
            }
            (Some(Place::Message | Place::Part), name) if is_secret(name) => Key::Secret,
            (Some(Place::Message | Place::Part), name) if is_payload(name) => Key::Payload,
            (Some(Place::StreamOptions), "include_usage") => Key::IncludeUsage,
            _ => Key::Other,
        };
    }

    fn string(&mut self) -> Want {
        self.prompt.has_input |= matches!(self.levels.innermost(), Some(Place::Messages));
        if self.value.is_none() && !self.is_read() {
            // Where it begins is known at its end.
            self.begin_value(0);
        }
        if let Some(value) = &mut self.value {
            value.string();
            if value.of.is_unread() {
                let is_certain = matches!(self.key, Key::Thought) && value.is_whole();
                self.unread.string(is_certain, value.of == Of::Media && value.is_whole());
            }
            return Want::Pieces;
        }
        match (self.levels.innermost(), self.key) {
            (None, _) => {
                self.not_an_object = true;
                Want::Nothing
            }
            (Some(Place::Body), Key::Model | Key::PreviousResponseId | Key::Stream) => Want::Whole,
            (Some(Place::Body), Key::Limit(_)) => Want::Whole,
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
                // An embedding of nothing is one, too: of what the tokenizer puts around it.
                self.prompt.has_input |= self.api == Api::Embeddings;
                self.begin_text()
            }
            (Some(Place::Body), Key::PromptEmbeds) => {
                self.embeds = 1;
                Want::Nothing
            }
            (Some(Place::Embeds), _) => {
                self.embeds = self.embeds.saturating_add(1);
                Want::Nothing
            }
            (Some(Place::Body), Key::System) => {
                self.prompt.prefix.begin_system();
                self.begin_text()
            }
            (Some(Place::StreamOptions), Key::IncludeUsage) => Want::Whole,
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
        if let (Some(Place::Body), Key::Messages | Key::Prompts) = (self.levels.innermost(), self.key) {
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
            (Some(Place::Message | Place::Part), Key::Role | Key::Name | Key::Type | Key::Payload)
                if length > WORD_BYTES_MAX =>
            {
                self.prompt.tool_bytes = self.prompt.tool_bytes.saturating_add(length);
            }
            (Some(Place::Body), Key::PromptEmbeds) | (Some(Place::Embeds), _) => {
                self.prompt.token_ids = self.prompt.token_ids.saturating_add(length / EMBEDDING_BYTES);
            }
            _ => {}
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
            // A number that is too long to be kept is none that can be relied on.
            (Some(Place::Body | Place::StreamOptions), _) => {
                self.fix(Written::Text(if kept.cut { "" } else { kept.text }), span);
            }
            (Some(Place::Message), Key::Role) => self.prompt.prefix.role(kept.text),
            (Some(Place::Message | Place::Part), Key::Name) => self.prompt.prefix.detail(text_hash(kept.text)),
            (Some(Place::Part), Key::Type) => {
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
            (Some(Place::Body | Place::StreamOptions), _) => self.fix(Written::Scalar(scalar), span),
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
