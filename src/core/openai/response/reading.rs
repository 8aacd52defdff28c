//! One JSON text of a response as it is read: what an event, or a whole body, has said.

use std::ops::Range;

use super::{
    super::{
        Api,
        scan::{Container, Kept, Levels, Scalar, Sink, Want},
        tokens::TokenTally,
    },
    Ending, Observed,
    cause::Evidence,
    choices::Choices,
    place::{self, AnswerKey, AnswerPlace, Reasoning},
};

/// One JSON text as far as it is read: an event's data or a whole body.
#[derive(Clone, Debug)]
pub(super) struct AnswerReading {
    pub(super) api: Api,
    pub(super) is_event: bool,
    levels: Levels<AnswerPlace>,
    key: AnswerKey,
    kind: EventKind,
    delta: Delta,
    has_content: bool,
    string: Text,
    /// Containers of JSON that the model has written, around this place.
    json_depth: usize,
    /// Whether nothing stands in it yet.
    json_is_empty: bool,
    /// Of a choice's reasoning, the name that it came by.
    reasoning: Option<Reasoning>,
    pub(super) tally: TokenTally,
    pub(super) has_output: bool,
    pub(super) has_error: bool,
    pub(super) evidence: Evidence,
    ending: Option<Ending>,
    /// Of a response of `/v1/responses`, what its status says of its end.
    status: Option<Ending>,
    /// The choices of this text.
    pub(super) choices: Choices,
    choice: OpenChoice,
    /// Place of the choice in its list.
    position: u64,
    pub(super) id: Option<String>,
    pub(super) usage: Option<PartialUsage>,
    /// Whether the object ended.
    pub(super) is_whole: bool,
}

/// What one choice gained in a chat's stream.
#[derive(Clone, Copy, Debug, Default)]
struct Delta {
    names_role: bool,
    has_empty_text: bool,
    has_content: bool,
}

/// The choice that is being read.
#[derive(Clone, Copy, Debug, Default)]
struct OpenChoice {
    index: Option<u64>,
    is_finished: bool,
}

/// What the string is that is being read in pieces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Text {
    #[default]
    None,
    Generated,
    /// Text that a model generated in two forms: counted once.
    Reasoning(Reasoning),
    /// A string inside of JSON that the model has written.
    Json,
    Media,
    /// A message; it may be all that there is to an error.
    Message {
        is_error: bool,
    },
}

/// Messages tells its usage in parts.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PartialUsage {
    pub(super) prompt_tokens: Option<u64>,
    pub(super) completion_tokens: Option<u64>,
    pub(super) cached_tokens: Option<u64>,
}

/// What an event's `type` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum EventKind {
    #[default]
    Other,
    Content,
    /// Content that is no text.
    Media,
    /// A part of the answer begins; where it ends, all of it comes again.
    Begin,
    Completed,
    /// The end, before the model has ended.
    Incomplete,
    /// The end of a message.
    Stop,
    /// The end, because of an error.
    Failed,
    Error,
}

// === impl Kind ===

impl EventKind {
    fn named(event: &str) -> EventKind {
        match event {
            "content_block_delta" => EventKind::Content,
            "message_stop" => EventKind::Stop,
            "response.completed" => EventKind::Completed,
            "response.incomplete" => EventKind::Incomplete,
            "response.failed" => EventKind::Failed,
            "response.output_item.added" => EventKind::Begin,
            "error" => EventKind::Error,
            _ => match event.strip_prefix("response.").and_then(|event| event.strip_suffix(".delta")) {
                Some("audio" | "output_audio") => EventKind::Media,
                Some(_) => EventKind::Content,
                None => EventKind::Other,
            },
        }
    }
}

// === impl Reading ===

impl AnswerReading {
    pub(super) fn new(api: Api, is_event: bool, tally: TokenTally) -> AnswerReading {
        AnswerReading {
            api,
            is_event,
            levels: Levels::default(),
            key: AnswerKey::Other,
            kind: EventKind::Other,
            delta: Delta::default(),
            has_content: false,
            string: Text::None,
            json_depth: 0,
            json_is_empty: false,
            reasoning: None,
            tally,
            has_output: false,
            has_error: false,
            evidence: Evidence::default(),
            ending: None,
            status: None,
            choices: Choices::default(),
            choice: OpenChoice::default(),
            position: 0,
            id: None,
            usage: None,
            is_whole: false,
        }
    }

    pub(super) fn is_content(&self) -> bool {
        self.has_content || matches!(self.kind, EventKind::Content | EventKind::Media)
    }

    /// Whether this is content that is no text.
    pub(super) fn is_media(&self) -> bool {
        self.kind == EventKind::Media
    }

    /// Whether this is the API's last event.
    pub(super) fn is_end(&self) -> bool {
        matches!(self.kind, EventKind::Completed | EventKind::Incomplete | EventKind::Stop | EventKind::Failed)
    }

    /// Whether what was generated in this text is new, and not told again.
    pub(super) fn adds_to(&self, observed: &Observed) -> bool {
        match self.kind {
            _ if !self.is_event || self.api != Api::Responses => true,
            EventKind::Content | EventKind::Media | EventKind::Begin => true,
            // A server that streams nothing tells all of it at the end.
            EventKind::Completed | EventKind::Incomplete => !observed.has_output,
            _ => false,
        }
    }

    /// Whether the whole text is an error, however it says so.
    pub(super) fn is_error(&self) -> bool {
        let is_bare = self.evidence.has_number() && !self.has_output && self.usage.is_none();
        is_bare || matches!(self.kind, EventKind::Error | EventKind::Failed)
    }

    pub(super) fn ending(&self) -> Option<Ending> {
        let by_kind = match self.kind {
            EventKind::Completed => Some(Ending::ByItself),
            EventKind::Incomplete | EventKind::Failed => Some(Ending::Other),
            _ => None,
        };
        self.ending.or(self.status).or(by_kind)
    }

    /// A choice, or the response, has ended for this reason.
    fn end(&mut self, reason: &str) {
        if reason.is_empty() {
            return;
        }
        self.choice.is_finished = true;
        let ending = match reason {
            "stop" | "tool_calls" | "function_call" | "eos_token" => Ending::ByItself,
            "end_turn" | "stop_sequence" | "tool_use" => Ending::ByItself,
            "length" | "max_tokens" | "max_output_tokens" => Ending::Limit,
            _ => Ending::Other,
        };
        self.ending = self.ending.max(Some(ending));
    }

    fn status(&mut self, status: &str) {
        self.evidence.code(status);
        if self.api != Api::Responses {
            return;
        }
        self.has_error |= status == "failed";
        self.status = match status {
            "completed" => Some(Ending::ByItself),
            "queued" | "in_progress" | "" => None,
            _ => Some(Ending::Other),
        };
    }

    /// More of what was generated.
    fn generate(&mut self, piece: &str) {
        self.json_is_empty = false;
        let lane = self.choice.index.unwrap_or(self.position);
        self.tally.push(lane, piece);
        self.has_output |= !piece.is_empty();
    }

    /// Reads a string in pieces.
    fn read(&mut self, text: Text) -> Want {
        self.string = text;
        Want::Pieces
    }

    /// Something stands inside of what an `error` or a list of embeddings is.
    fn not_empty(&mut self) {
        match self.levels.innermost() {
            Some(AnswerPlace::Error) => self.has_error = true,
            Some(AnswerPlace::Embeddings) => self.has_output = true,
            _ => {}
        }
    }
}

impl Sink for AnswerReading {
    fn open(&mut self, container: Container, _at: u64) {
        self.not_empty();
        if self.json_depth > 0 {
            self.json_depth = self.json_depth.saturating_add(1);
            self.levels.push(AnswerPlace::Json);
            return;
        }
        let around = self.levels.innermost();
        let place = place::opened(around, self.key, container);
        match (around, place) {
            (_, AnswerPlace::Choice) => (self.choice, self.reasoning) = (OpenChoice::default(), None),
            (_, AnswerPlace::Delta) => self.delta = Delta::default(),
            (Some(AnswerPlace::ToolCalls), _) => (self.delta.has_content, self.has_output) = (true, true),
            (_, AnswerPlace::Json) => (self.json_depth, self.json_is_empty) = (1, true),
            (_, AnswerPlace::Usage) => self.usage = Some(PartialUsage::default()),
            (Some(AnswerPlace::Body), AnswerPlace::Elsewhere) if self.key == AnswerKey::Detail => {
                self.has_error = true;
                self.evidence.is_refusal();
            }
            _ => {}
        }
        self.levels.push(place);
    }

    fn close(&mut self, _end: u64) {
        if self.json_depth > 0 {
            self.json_depth = self.json_depth.saturating_sub(1);
            if !self.json_is_empty {
                self.generate("}");
            }
        }
        match self.levels.pop() {
            Some(AnswerPlace::Body) => self.is_whole = true,
            Some(AnswerPlace::Choice) => {
                self.choices.see(self.choice.index.unwrap_or(self.position), self.choice.is_finished);
                self.position = self.position.saturating_add(1);
            }
            Some(AnswerPlace::Delta) => {
                let Delta { names_role, has_empty_text, has_content } = self.delta;
                self.has_content |= has_content || (has_empty_text && !names_role);
            }
            _ => {}
        }
    }

    fn key(&mut self, name: &str) {
        self.not_empty();
        if self.json_depth > 0 {
            self.generate("\"");
            self.generate(name);
            self.generate("\": ");
            return;
        }
        self.key = place::key(self.api, self.levels.innermost(), name);
    }

    fn string(&mut self) -> Want {
        self.not_empty();
        self.string = Text::None;
        if self.json_depth > 0 {
            self.generate("\"");
            return self.read(Text::Json);
        }
        let place = self.levels.innermost();
        match (place, self.key) {
            (Some(AnswerPlace::Parts), _) => self.read(Text::Generated),
            (Some(AnswerPlace::Choice), AnswerKey::Text) => {
                self.has_content = true;
                self.read(Text::Generated)
            }
            (Some(AnswerPlace::Delta), AnswerKey::Role) => {
                self.delta.names_role = true;
                Want::Nothing
            }
            (_, AnswerKey::Text | AnswerKey::Arguments) | (Some(AnswerPlace::Body), AnswerKey::Delta) => {
                self.delta.has_empty_text |= place == Some(AnswerPlace::Delta);
                self.read(Text::Generated)
            }
            (_, AnswerKey::Reasoning(name)) => {
                self.delta.has_empty_text |= place == Some(AnswerPlace::Delta);
                self.read(Text::Reasoning(name))
            }
            (_, AnswerKey::Media) => self.read(Text::Media),
            (_, AnswerKey::Error) => self.read(Text::Message { is_error: true }),
            (Some(AnswerPlace::Body), AnswerKey::Detail) => {
                self.has_error = true;
                self.evidence.is_refusal();
                self.read(Text::Message { is_error: true })
            }
            (_, AnswerKey::ErrorMessage | AnswerKey::Subject) => self.read(Text::Message { is_error: false }),
            (_, AnswerKey::Type | AnswerKey::Object | AnswerKey::Id | AnswerKey::EndReason | AnswerKey::Status) => {
                Want::Whole
            }
            (_, AnswerKey::ErrorCode | AnswerKey::ErrorWord) => Want::Whole,
            _ => Want::Nothing,
        }
    }

    fn text(&mut self, piece: &str) {
        let is_delta = self.levels.innermost() == Some(AnswerPlace::Delta);
        match self.string {
            Text::None => {}
            Text::Message { is_error } => {
                self.has_error |= is_error && !piece.is_empty();
                self.evidence.message(piece);
            }
            Text::Generated | Text::Json => self.generate(piece),
            Text::Reasoning(name) => {
                if *self.reasoning.get_or_insert(name) == name {
                    self.generate(piece);
                }
            }
            Text::Media => self.has_output |= !piece.is_empty(),
        }
        self.delta.has_content |= is_delta && !piece.is_empty();
    }

    fn string_end(&mut self, kept: Kept<'_>, _span: Range<u64>) {
        match (std::mem::take(&mut self.string), self.key) {
            (Text::Json, _) => self.generate("\""),
            (Text::Message { is_error }, _) => self.evidence.message_end(is_error),
            (Text::None, AnswerKey::Type) if !kept.cut => {
                self.kind = match EventKind::named(kept.text) {
                    EventKind::Other => self.kind,
                    kind => kind,
                };
                self.evidence.word(kept.text);
            }
            (Text::None, AnswerKey::Object) => self.has_error |= kept.text == "error",
            (Text::None, AnswerKey::EndReason) => self.end(kept.text),
            (Text::None, AnswerKey::Status) => self.status(kept.text),
            (Text::None, AnswerKey::ErrorCode) => self.evidence.code(kept.text),
            (Text::None, AnswerKey::ErrorWord) => self.evidence.word(kept.text),
            (Text::None, AnswerKey::Id) if !kept.cut && !kept.text.is_empty() => self.id = Some(kept.text.to_owned()),
            _ => {}
        }
    }

    fn scalar(&mut self, scalar: Scalar<'_>, _span: Range<u64>) {
        self.not_empty();
        if self.json_depth > 0 {
            return self.generate(match scalar {
                Scalar::Null => "null",
                Scalar::Bool(true) => "true",
                Scalar::Bool(false) => "false",
                Scalar::Number(number) => number,
            });
        }
        let place = self.levels.innermost();
        self.has_error |= scalar == Scalar::Bool(true) && self.key == AnswerKey::Error;
        let Scalar::Number(number) = scalar else { return };
        if matches!(self.key, AnswerKey::ErrorCode | AnswerKey::Status | AnswerKey::Error) {
            self.evidence.code(number);
        }
        let Ok(count) = number.parse() else { return };
        match (place, self.key) {
            (Some(AnswerPlace::Choice), AnswerKey::Index) => self.choice.index = Some(count),
            (Some(AnswerPlace::Body), AnswerKey::Count) => self.has_output = true,
            _ => {}
        }
        let Some(usage) = &mut self.usage else { return };
        match (place, self.key) {
            (Some(AnswerPlace::Usage), AnswerKey::PromptTokens) => usage.prompt_tokens = Some(count),
            (Some(AnswerPlace::Usage), AnswerKey::CompletionTokens) => usage.completion_tokens = Some(count),
            (Some(AnswerPlace::Usage | AnswerPlace::UsageDetails), AnswerKey::CachedTokens) => {
                usage.cached_tokens = Some(count)
            }
            _ => {}
        }
    }
}
