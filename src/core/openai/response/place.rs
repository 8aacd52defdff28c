//! Where in a response's JSON the reader is, and what the value there means.

use super::super::{Api, scan::Container};

/// What an open container is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum AnswerPlace {
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
pub(super) enum AnswerKey {
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
pub(super) fn key(api: Api, place: Option<AnswerPlace>, name: &str) -> AnswerKey {
    match place {
        Some(AnswerPlace::Body) => body_key(api, name),
        Some(AnswerPlace::Subject) => subject_key(api, name),
        Some(AnswerPlace::Error) => error_key(name),
        Some(AnswerPlace::Choice) => match name {
            "index" => AnswerKey::Index,
            "finish_reason" => AnswerKey::EndReason,
            "delta" => AnswerKey::Delta,
            "message" => AnswerKey::Message,
            "text" => AnswerKey::Text,
            "error" => AnswerKey::Error,
            _ => AnswerKey::Other,
        },
        Some(AnswerPlace::Incomplete) if name == "reason" => AnswerKey::EndReason,
        Some(AnswerPlace::MessageDelta) if name == "stop_reason" => AnswerKey::EndReason,
        Some(AnswerPlace::Delta) => delta_key(name),
        Some(AnswerPlace::Generated | AnswerPlace::MessageDelta) => generated_key(name),
        Some(AnswerPlace::Item) if name == "name" => AnswerKey::Text,
        Some(AnswerPlace::Usage | AnswerPlace::UsageDetails) => usage_key(name),
        _ => AnswerKey::Other,
    }
}

fn body_key(api: Api, name: &str) -> AnswerKey {
    match (name, api) {
        ("type", _) => AnswerKey::Type,
        ("object", _) => AnswerKey::Object,
        ("choices", _) => AnswerKey::Choices,
        ("response", Api::Responses) | ("message", Api::Messages) => AnswerKey::Subject,
        ("delta", Api::Messages | Api::Responses) => AnswerKey::Delta,
        ("content_block", Api::Messages) => AnswerKey::Generated,
        ("item", Api::Responses) => AnswerKey::Item,
        ("data", Api::Embeddings) => AnswerKey::Embeddings,
        ("input_tokens", Api::CountTokens) => AnswerKey::Count,
        ("detail", _) => AnswerKey::Detail,
        ("code" | "status_code" | "statusCode" | "error_code", _) => AnswerKey::ErrorCode,
        ("error_type" | "__type" | "title", _) => AnswerKey::ErrorWord,
        ("message", _) => AnswerKey::ErrorMessage,
        _ => subject_key(api, name),
    }
}

fn subject_key(api: Api, name: &str) -> AnswerKey {
    match (name, api) {
        ("id", Api::Responses) => AnswerKey::Id,
        ("error", _) => AnswerKey::Error,
        ("status", _) => AnswerKey::Status,
        ("stop_reason", Api::Messages) => AnswerKey::EndReason,
        ("content", Api::Messages) | ("output", Api::Responses) => AnswerKey::Generated,
        ("usage", _) => AnswerKey::Usage,
        ("incomplete_details", _) => AnswerKey::Incomplete,
        _ => AnswerKey::Other,
    }
}

fn error_key(name: &str) -> AnswerKey {
    match name {
        "code" | "status" | "status_code" | "statusCode" | "http_code" => AnswerKey::ErrorCode,
        "type" | "error_type" | "err_type" | "reason" | "__type" => AnswerKey::ErrorWord,
        "message" | "msg" | "detail" => AnswerKey::ErrorMessage,
        "error" | "innererror" => AnswerKey::Error,
        _ => AnswerKey::Other,
    }
}

fn delta_key(name: &str) -> AnswerKey {
    match name {
        "role" => AnswerKey::Role,
        "content" | "refusal" => AnswerKey::Text,
        "reasoning" | "reasoning_content" | "tool_calls" | "function_call" | "audio" => generated_key(name),
        _ => AnswerKey::Other,
    }
}

fn generated_key(name: &str) -> AnswerKey {
    match name {
        "content" | "text" | "refusal" | "thinking" | "name" | "partial_json" | "transcript" | "code" => {
            AnswerKey::Text
        }
        "reasoning" => AnswerKey::Reasoning(Reasoning::Reasoning),
        "reasoning_content" => AnswerKey::Reasoning(Reasoning::ReasoningContent),
        "arguments" | "input" => AnswerKey::Arguments,
        "tool_calls" => AnswerKey::ToolCalls,
        "function" | "function_call" | "custom" | "audio" | "summary" => AnswerKey::Generated,
        "data" | "result" => AnswerKey::Media,
        _ => AnswerKey::Other,
    }
}

fn usage_key(name: &str) -> AnswerKey {
    match name {
        "prompt_tokens" | "input_tokens" => AnswerKey::PromptTokens,
        "completion_tokens" | "output_tokens" => AnswerKey::CompletionTokens,
        "cache_read_input_tokens" | "cached_tokens" => AnswerKey::CachedTokens,
        "prompt_tokens_details" | "input_tokens_details" => AnswerKey::UsageDetails,
        _ => AnswerKey::Other,
    }
}

/// What a container is that opens there.
pub(super) fn opened(around: Option<AnswerPlace>, key: AnswerKey, container: Container) -> AnswerPlace {
    use Container::{Array, Object};
    match (around, key, container) {
        (None, _, Array) => AnswerPlace::List,
        (None | Some(AnswerPlace::List), _, Object) => AnswerPlace::Body,
        (
            Some(AnswerPlace::Body | AnswerPlace::Subject | AnswerPlace::Choice | AnswerPlace::Error),
            AnswerKey::Error,
            _,
        )
        | (Some(AnswerPlace::Body), AnswerKey::Detail, Object) => AnswerPlace::Error,
        (Some(AnswerPlace::Body), AnswerKey::Subject, Object) => AnswerPlace::Subject,
        (Some(AnswerPlace::Body | AnswerPlace::Subject), AnswerKey::Incomplete, Object) => AnswerPlace::Incomplete,
        (Some(AnswerPlace::Body), AnswerKey::Choices, Array) => AnswerPlace::Choices,
        (Some(AnswerPlace::Choices), _, Object) => AnswerPlace::Choice,
        (Some(AnswerPlace::Body), AnswerKey::Delta, Object) => AnswerPlace::MessageDelta,
        (Some(AnswerPlace::Choice), AnswerKey::Delta, Object) => AnswerPlace::Delta,
        (Some(AnswerPlace::Choice), AnswerKey::Message, Object) => AnswerPlace::Generated,
        (Some(AnswerPlace::Delta | AnswerPlace::Generated), AnswerKey::ToolCalls, Array) => AnswerPlace::ToolCalls,
        (Some(AnswerPlace::ToolCalls | AnswerPlace::Parts), _, Object) => AnswerPlace::Generated,
        (Some(AnswerPlace::Body), AnswerKey::Item, Object) => AnswerPlace::Item,
        (Some(AnswerPlace::Body), AnswerKey::Embeddings, Array) => AnswerPlace::Embeddings,
        (_, AnswerKey::Arguments, _) => AnswerPlace::Json,
        (_, AnswerKey::Text | AnswerKey::Reasoning(_) | AnswerKey::Generated, Array) => AnswerPlace::Parts,
        (_, AnswerKey::Generated, Object) => AnswerPlace::Generated,
        (Some(AnswerPlace::Body | AnswerPlace::Subject), AnswerKey::Usage, Object) => AnswerPlace::Usage,
        (Some(AnswerPlace::Usage), AnswerKey::UsageDetails, Object) => AnswerPlace::UsageDetails,
        _ => AnswerPlace::Elsewhere,
    }
}
