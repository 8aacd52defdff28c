//! Where in a response's JSON the reader is, and what the value there means.

use super::super::{Api, scan::Container};

/// What an open container is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Place {
    #[default]
    Elsewhere,
    /// A list around the body, as Google puts it around errors.
    List,
    Body,
    Error,
    /// The response or message that an event is about.
    Subject,
    /// What ended a response of `/v1/responses` early.
    Incomplete,
    Choices,
    Choice,
    /// What a choice gained in a chat's stream.
    Delta,
    MessageDelta,
    ToolCalls,
    /// Something generated: the keys of its texts are known.
    Generated,
    /// A list of such.
    Parts,
    /// The item that an event of `/v1/responses` begins.
    Item,
    /// JSON that the model has written, as far as all of it counts.
    Json,
    Embeddings,
    Usage,
    UsageDetails,
}

/// What the value that comes next is, inside of an object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Key {
    #[default]
    Other,
    Type,
    Object,
    Id,
    Error,
    /// FastAPI's refusal.
    Detail,
    /// A number or a word that names an error.
    ErrorCode,
    ErrorWord,
    ErrorMessage,
    Subject,
    Incomplete,
    /// Why an answer ended.
    EndReason,
    /// The state of a response of `/v1/responses`; of an error elsewhere.
    Status,
    Choices,
    Index,
    Delta,
    Message,
    Role,
    Text,
    /// Like text, by two names that may come with the same content.
    Reasoning(Reasoning),
    /// Arguments of a tool, as a string or as they are.
    Arguments,
    /// Generated, but no text.
    Media,
    ToolCalls,
    Generated,
    Item,
    Embeddings,
    /// All that an answer to `/v1/messages/count_tokens` holds.
    Count,
    Usage,
    UsageDetails,
    PromptTokens,
    CompletionTokens,
    CachedTokens,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reasoning {
    Reasoning,
    ReasoningContent,
}

/// What the value of this key means there.
pub(super) fn key(api: Api, place: Option<Place>, name: &str) -> Key {
    match place {
        Some(Place::Body) => body_key(api, name),
        Some(Place::Subject) => subject_key(api, name),
        Some(Place::Error) => error_key(name),
        Some(Place::Choice) => match name {
            "index" => Key::Index,
            "finish_reason" => Key::EndReason,
            "delta" => Key::Delta,
            "message" => Key::Message,
            "text" => Key::Text,
            "error" => Key::Error,
            _ => Key::Other,
        },
        Some(Place::Incomplete) if name == "reason" => Key::EndReason,
        Some(Place::MessageDelta) if name == "stop_reason" => Key::EndReason,
        Some(Place::Delta) => delta_key(name),
        Some(Place::Generated | Place::MessageDelta) => generated_key(name),
        Some(Place::Item) if name == "name" => Key::Text,
        Some(Place::Usage | Place::UsageDetails) => usage_key(name),
        _ => Key::Other,
    }
}

fn body_key(api: Api, name: &str) -> Key {
    match (name, api) {
        ("type", _) => Key::Type,
        ("object", _) => Key::Object,
        ("choices", _) => Key::Choices,
        ("response", Api::Responses) | ("message", Api::Messages) => Key::Subject,
        ("delta", Api::Messages | Api::Responses) => Key::Delta,
        ("content_block", Api::Messages) => Key::Generated,
        ("item", Api::Responses) => Key::Item,
        ("data", Api::Embeddings) => Key::Embeddings,
        ("input_tokens", Api::CountTokens) => Key::Count,
        ("detail", _) => Key::Detail,
        ("code" | "status_code" | "statusCode" | "error_code", _) => Key::ErrorCode,
        ("error_type" | "__type" | "title", _) => Key::ErrorWord,
        ("message", _) => Key::ErrorMessage,
        _ => subject_key(api, name),
    }
}

fn subject_key(api: Api, name: &str) -> Key {
    match (name, api) {
        ("id", Api::Responses) => Key::Id,
        ("error", _) => Key::Error,
        ("status", _) => Key::Status,
        ("stop_reason", Api::Messages) => Key::EndReason,
        ("content", Api::Messages) | ("output", Api::Responses) => Key::Generated,
        ("usage", _) => Key::Usage,
        ("incomplete_details", _) => Key::Incomplete,
        _ => Key::Other,
    }
}

fn error_key(name: &str) -> Key {
    match name {
        "code" | "status" | "status_code" | "statusCode" | "http_code" => Key::ErrorCode,
        "type" | "error_type" | "err_type" | "reason" | "__type" => Key::ErrorWord,
        "message" | "msg" | "detail" => Key::ErrorMessage,
        "error" | "innererror" => Key::Error,
        _ => Key::Other,
    }
}

fn delta_key(name: &str) -> Key {
    match name {
        "role" => Key::Role,
        "content" | "refusal" => Key::Text,
        "reasoning" | "reasoning_content" | "tool_calls" | "function_call" | "audio" => generated_key(name),
        _ => Key::Other,
    }
}

fn generated_key(name: &str) -> Key {
    match name {
        "content" | "text" | "refusal" | "thinking" | "name" | "partial_json" | "transcript" | "code" => Key::Text,
        "reasoning" => Key::Reasoning(Reasoning::Reasoning),
        "reasoning_content" => Key::Reasoning(Reasoning::ReasoningContent),
        "arguments" | "input" => Key::Arguments,
        "tool_calls" => Key::ToolCalls,
        "function" | "function_call" | "custom" | "audio" | "summary" => Key::Generated,
        "data" | "result" => Key::Media,
        _ => Key::Other,
    }
}

fn usage_key(name: &str) -> Key {
    match name {
        "prompt_tokens" | "input_tokens" => Key::PromptTokens,
        "completion_tokens" | "output_tokens" => Key::CompletionTokens,
        "cache_read_input_tokens" | "cached_tokens" => Key::CachedTokens,
        "prompt_tokens_details" | "input_tokens_details" => Key::UsageDetails,
        _ => Key::Other,
    }
}

/// What a container is that opens there.
pub(super) fn opened(around: Option<Place>, key: Key, container: Container) -> Place {
    use Container::{Array, Object};
    match (around, key, container) {
        (None, _, Array) => Place::List,
        (None | Some(Place::List), _, Object) => Place::Body,
        (Some(Place::Body | Place::Subject | Place::Choice | Place::Error), Key::Error, _)
        | (Some(Place::Body), Key::Detail, Object) => Place::Error,
        (Some(Place::Body), Key::Subject, Object) => Place::Subject,
        (Some(Place::Body | Place::Subject), Key::Incomplete, Object) => Place::Incomplete,
        (Some(Place::Body), Key::Choices, Array) => Place::Choices,
        (Some(Place::Choices), _, Object) => Place::Choice,
        (Some(Place::Body), Key::Delta, Object) => Place::MessageDelta,
        (Some(Place::Choice), Key::Delta, Object) => Place::Delta,
        (Some(Place::Choice), Key::Message, Object) => Place::Generated,
        (Some(Place::Delta | Place::Generated), Key::ToolCalls, Array) => Place::ToolCalls,
        (Some(Place::ToolCalls | Place::Parts), _, Object) => Place::Generated,
        (Some(Place::Body), Key::Item, Object) => Place::Item,
        (Some(Place::Body), Key::Embeddings, Array) => Place::Embeddings,
        (_, Key::Arguments, _) => Place::Json,
        (_, Key::Text | Key::Reasoning(_) | Key::Generated, Array) => Place::Parts,
        (_, Key::Generated, Object) => Place::Generated,
        (Some(Place::Body | Place::Subject), Key::Usage, Object) => Place::Usage,
        (Some(Place::Usage), Key::UsageDetails, Object) => Place::UsageDetails,
        _ => Place::Elsewhere,
    }
}
