//! `/v1/messages`, Anthropic's API as vLLM 0.32 serves it.

use super::chat::Head;
use serde_json::{Map, Value};

use super::request::{ApiError, quote};
use super::stream::{Choice, Format};
use super::text::Prompt;
use routebalance_sim::engine::FinishReason;

/// System text (a string or blocks) and messages.
pub(super) fn prompt(body: &Map<String, Value>) -> Prompt {
    let system = body.get("system").filter(|system| !system.is_null());
    let system = system.map(|system| serde_json::json!({"role": "system", "content": system}));
    let messages = body.get("messages").and_then(Value::as_array);
    Prompt::chat(&[], &system.into_iter().chain(messages.into_iter().flatten().cloned()).collect::<Vec<_>>())
}

fn stop_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "end_turn",
        FinishReason::Length => "max_tokens",
    }
}

fn cache_fields(head: &Head, cached: u32) -> String {
    if !head.details {
        return String::new();
    }
    format!(r#","cache_creation_input_tokens":0,"cache_read_input_tokens":{cached}"#)
}

/// The body of an answer that is not streamed.
pub(super) fn body(head: &Head, choice: &Choice) -> String {
    format!(
        r#"{{"id":{},"type":"message","role":"assistant","content":[{{"type":"text","text":{}}}],"model":{},"stop_reason":"{}","usage":{{"input_tokens":{},"output_tokens":{}{}}}}}"#,
        quote(&head.id),
        quote(&choice.text),
        quote(&head.model),
        stop_reason(choice.finish),
        head.prompt_tokens,
        choice.tokens,
        cache_fields(head, head.cached_tokens)
    )
}

/// The events of a streamed answer.
#[derive(Debug)]
pub(super) struct Events {
    head: Head,
    output: u32,
    started: bool,
    finish: FinishReason,
}

impl Events {
    pub(super) fn new(head: Head) -> Self {
        Self { head, output: 0, started: false, finish: FinishReason::Length }
    }
}

fn event(name: &str, rest: &str) -> String {
    format!("event: {name}\ndata: {{\"type\":\"{name}\"{rest}}}\n\n")
}

impl Format for Events {
    fn piece(&mut self, _choice: usize, token: Option<&str>, finish: Option<FinishReason>, events: &mut Vec<String>) {
        if !self.started {
            self.started = true;
            let (id, model) = (quote(&self.head.id), quote(&self.head.model));
            events.push(event(
                "message_start",
                &format!(
                    r#","message":{{"id":{id},"type":"message","role":"assistant","content":[],"model":{model},"stop_reason":null,"stop_sequence":null,"usage":{{"input_tokens":{},"output_tokens":0}}}}"#,
                    self.head.prompt_tokens
                ),
            ));
            events.push(event("content_block_start", r#","content_block":{"type":"text","text":""},"index":0"#));
        }
        if let Some(token) = token {
            self.output += 1;
            let text = quote(token);
            events.push(event(
                "content_block_delta",
                &format!(r#","delta":{{"type":"text_delta","text":{text}}},"index":0"#),
            ));
        }
        self.finish = finish.unwrap_or(self.finish);
    }

    fn close(&mut self, cached_tokens: u32, events: &mut Vec<String>) {
        events.push(event("content_block_stop", r#","index":0"#));
        events.push(event(
            "message_delta",
            &format!(
                r#","delta":{{"stop_reason":"{}","stop_sequence":null}},"usage":{{"input_tokens":{},"output_tokens":{}{}}}"#,
                stop_reason(self.finish),
                self.head.prompt_tokens,
                self.output,
                cache_fields(&self.head, cached_tokens)
            ),
        ));
        events.push(event("message_stop", ""));
    }

    fn fail(&self, _error: &ApiError) -> Option<Vec<String>> {
        // What vLLM makes of an error chunk that is no ChatCompletionStreamResponse.
        const MESSAGE: &str = "2 validation errors for ChatCompletionStreamResponse\nmodel\n  Field required [type=missing, \
            input_value={'error': {'message': 'En...or', 'code': 500}}, input_type=dict]\nchoices\n  Field required [type=missing, \
            input_value={'error': {'message': 'En...or', 'code': 500}}, input_type=dict]";
        Some(vec![format!(
            "event: error\ndata: {{\"type\":\"error\",\"error\":{{\"type\":\"internal_error\",\"message\":{}}}}}\n\n",
            quote(MESSAGE)
        )])
    }
}
