//! `/v1/responses`, OpenAI's API as vLLM 0.32 serves it, with its store in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::chat::Head;
use super::request::{ApiError, quote};
use super::stream::{Choice, Format};
use routebalance_sim::engine::FinishReason;

/// Responses kept; the oldest goes first.
const KEPT: usize = 10_000;

/// A response that `previous_response_id` or `GET` may name.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) body: String,
    /// What was said until then, the answer included.
    pub(super) conversation: String,
}

/// Finished responses by id.
#[derive(Debug, Default)]
pub(super) struct Store(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    by_id: BTreeMap<String, Stored>,
    order: std::collections::VecDeque<String>,
}

impl Store {
    pub(super) fn get(&self, id: &str) -> Option<Stored> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).by_id.get(id).cloned()
    }

    fn put(&self, id: String, stored: Stored) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.order.push_back(id.clone());
        kept.by_id.insert(id, stored);
        if kept.order.len() > KEPT
            && let Some(oldest) = kept.order.pop_front()
        {
            kept.by_id.remove(&oldest);
        }
    }
}

/// What a response object says besides its answer.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub(super) head: Head,
    pub(super) message_id: String,
    /// JSON: a string or null.
    pub(super) instructions: String,
    pub(super) previous: Option<String>,
    pub(super) max_output_tokens: u32,
    /// What the model reads, for the next turn.
    pub(super) prompt_text: String,
    /// Where to keep it, unless the client said `"store": false`.
    pub(super) store: Option<Arc<Store>>,
}

impl Frame {
    fn object(&self, answer: Option<&Choice>) -> String {
        let (output, usage, status, incomplete) = match answer {
            None => (String::new(), "null".into(), "in_progress", "null"),
            Some(choice) => {
                let (input, cached, output) = (self.head.prompt_tokens, self.head.cached_tokens, choice.tokens);
                let usage = format!(
                    r#"{{"input_tokens":{input},"input_tokens_details":{{"cached_tokens":{cached},"cache_write_tokens":0,"input_tokens_per_turn":[],"cached_tokens_per_turn":[]}},"output_tokens":{output},"output_tokens_details":{{"reasoning_tokens":0,"tool_output_tokens":0,"output_tokens_per_turn":[],"tool_output_tokens_per_turn":[]}},"total_tokens":{}}}"#,
                    input + output
                );
                let (status, incomplete) = match choice.finish {
                    FinishReason::Stop => ("completed", "null"),
                    FinishReason::Length => ("incomplete", r#"{"reason":"max_output_tokens"}"#),
                };
                (self.item(&choice.text), usage, status, incomplete)
            }
        };
        format!(
            r#"{{"id":{},"created_at":{},"incomplete_details":{incomplete},"instructions":{},"metadata":null,"model":{},"object":"response","output":[{output}],"parallel_tool_calls":true,"temperature":1.0,"tool_choice":"none","tools":[],"top_p":1.0,"background":false,"max_output_tokens":{},"max_tool_calls":null,"previous_response_id":{},"prompt":null,"reasoning":null,"service_tier":"auto","status":"{status}","text":null,"top_logprobs":null,"truncation":"disabled","usage":{usage},"user":null,"presence_penalty":0.0,"frequency_penalty":0.0,"kv_transfer_params":null,"ec_transfer_params":null,"input_messages":null,"output_messages":null}}"#,
            quote(&self.head.id),
            self.head.created,
            self.instructions,
            quote(&self.head.model),
            self.max_output_tokens,
            self.previous.as_deref().map_or("null".to_owned(), quote),
        )
    }

    fn item(&self, text: &str) -> String {
        format!(
            r#"{{"id":{},"content":[{{"annotations":[],"text":{},"type":"output_text","logprobs":null}}],"role":"assistant","status":"completed","type":"message","phase":null}}"#,
            quote(&self.message_id),
            quote(text)
        )
    }

    /// The body of a finished answer, which is kept from then on.
    pub(super) fn finish(&self, choice: &Choice) -> String {
        let body = self.object(Some(choice));
        if let Some(store) = &self.store {
            let conversation = format!("{}\n{}", self.prompt_text, choice.text);
            store.put(self.head.id.clone(), Stored { body: body.clone(), conversation });
        }
        body
    }
}

/// The events of a streamed answer.
#[derive(Debug)]
pub(super) struct Events {
    frame: Frame,
    sequence: u32,
    answer: Choice,
    started: bool,
}

impl Events {
    pub(super) fn new(frame: Frame) -> Self {
        let answer = Choice { text: String::new(), tokens: 0, finish: FinishReason::Length };
        Self { frame, sequence: 0, answer, started: false }
    }

    fn event(&mut self, name: &str, fields: &str) -> String {
        let number = self.sequence;
        self.sequence += 1;
        format!("event: {name}\ndata: {{{fields},\"sequence_number\":{number},\"type\":\"{name}\"}}\n\n")
    }
}

impl Format for Events {
    fn open(&mut self, events: &mut Vec<String>) {
        let response = format!(r#""response":{}"#, self.frame.object(None));
        for name in ["response.created", "response.in_progress"] {
            events.push(self.event(name, &response));
        }
    }

    fn piece(&mut self, _choice: usize, token: Option<&str>, finish: Option<FinishReason>, events: &mut Vec<String>) {
        let id = quote(&self.frame.message_id);
        if !self.started {
            self.started = true;
            let item = format!(
                r#""item":{{"id":{id},"content":[],"role":"assistant","status":"in_progress","type":"message","phase":null}},"output_index":0"#
            );
            events.push(self.event("response.output_item.added", &item));
            let part = format!(
                r#""content_index":0,"item_id":{id},"output_index":0,"part":{{"annotations":[],"text":"","type":"output_text","logprobs":[]}}"#
            );
            events.push(self.event("response.content_part.added", &part));
        }
        if let Some(token) = token {
            self.answer.tokens += 1;
            self.answer.text.push_str(token);
            let delta =
                format!(r#""content_index":0,"delta":{},"item_id":{id},"logprobs":[],"output_index":0"#, quote(token));
            events.push(self.event("response.output_text.delta", &delta));
        }
        self.answer.finish = finish.unwrap_or(self.answer.finish);
    }

    fn close(&mut self, cached_tokens: u32, events: &mut Vec<String>) {
        self.frame.head.cached_tokens = cached_tokens;
        let (id, text) = (quote(&self.frame.message_id), quote(&self.answer.text));
        let done = format!(r#""content_index":0,"item_id":{id},"logprobs":[],"output_index":0"#);
        events.push({
            let number = self.sequence;
            self.sequence += 1;
            format!(
                "event: response.output_text.done\ndata: {{{done},\"sequence_number\":{number},\"text\":{text},\"type\":\"response.output_text.done\"}}\n\n"
            )
        });
        let part = format!(
            r#""content_index":0,"item_id":{id},"output_index":0,"part":{{"annotations":[],"text":{text},"type":"output_text","logprobs":null}}"#
        );
        events.push(self.event("response.content_part.done", &part));
        let item = format!(r#""item":{},"output_index":0"#, self.frame.item(&self.answer.text));
        events.push(self.event("response.output_item.done", &item));
        let response = format!(r#""response":{}"#, self.frame.finish(&self.answer));
        events.push(self.event("response.completed", &response));
    }

    fn fail(&self, _error: &ApiError) -> Option<Vec<String>> {
        None
    }
}
