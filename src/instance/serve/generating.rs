//! The APIs that generate: from a body to sequences for the engine, and from what the engine makes of them to an answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode};
use serde_json::{Map, Value};

use super::{Server, completion_prompts, json, unix_seconds};
use crate::chat::{self, Api, Head, Usage};
use crate::driver::Sequence;
use crate::request::{ApiError, flag, integer, max_tokens, quote, validate};
use crate::responses::{Frame, Store};
use crate::stream::{Answer, InFlight};
use crate::text::Prompt;
use crate::{Fault, messages, responses};

/// Tokens of a completion when the client gives no limit (OpenAI's default).
const COMPLETION_TOKENS: u32 = 16;

/// The APIs that generate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Openai(Api),
    Responses,
    Messages,
}

impl Kind {
    fn required_fields(self) -> &'static [&'static str] {
        match self {
            Kind::Openai(Api::Chat) => &["messages"],
            Kind::Openai(Api::Completions) => &["prompt"],
            Kind::Responses => &["input"],
            Kind::Messages => &["messages", "max_tokens"],
        }
    }

    /// The fields that limit output tokens, the first of which counts, and the limit where none is given.
    fn limit_fields(self) -> (&'static [&'static str], Option<u32>) {
        match self {
            Kind::Openai(Api::Chat) => (&["max_completion_tokens", "max_tokens"], None),
            Kind::Openai(Api::Completions) => (&["max_tokens"], Some(COMPLETION_TOKENS)),
            Kind::Messages => (&["max_tokens"], None),
            Kind::Responses => (&["max_output_tokens"], None),
        }
    }

    /// How many answers a prompt gets.
    fn choices(self, body: &Map<String, Value>) -> usize {
        match self {
            Kind::Openai(_) => integer(body, "n").unwrap_or(1).clamp(1, 128) as usize,
            Kind::Responses | Kind::Messages => 1,
        }
    }
}

/// What the engine is to do.
struct Work {
    sequences: Vec<Sequence>,
    /// What the words of each answer depend on.
    seeds: Vec<u64>,
    /// The limit of output tokens of the last prompt.
    max_tokens: u32,
}

/// What an answer says besides what was generated.
struct Reply<'a> {
    kind: Kind,
    body: &'a Map<String, Value>,
    head: Head,
    max_tokens: u32,
    prompt_text: String,
    /// Where a response object is kept.
    store: &'a Arc<Store>,
}

impl Server {
    pub(super) async fn generate(
        &self,
        kind: Kind,
        body: &Map<String, Value>,
        headers: &HeaderMap,
        fault: Fault,
        cut: &Arc<AtomicBool>,
    ) -> Result<Response<Body>, ApiError> {
        validate(body, kind.required_fields())?;
        self.check_model(body)?;
        let adapter = text(body, "model").filter(|name| self.options.adapters.iter().any(|adapter| adapter == name));
        let prompts = self.prompts(kind, body)?;
        let Work { sequences, seeds, max_tokens } = self.work(kind, body, &prompts, adapter)?;
        let stream = flag(body, "stream");
        self.check_engine(fault, stream)?;
        let too_long = |_| ApiError::prompt_too_long(self.options.pool.limits.max_model_len);
        let generation = self.driver.submit(sequences).map_err(too_long)?;
        let answer = Answer { generation, seeds, _in_flight: InFlight::new(&self.in_flight) };
        let prompt_tokens = prompts.iter().map(|prompt| prompt.tokens).sum();
        let head = self.head(kind, headers, prompt_tokens, adapter);
        let prompt_text = prompts.into_iter().next().map(|prompt| prompt.text).unwrap_or_default();
        let reply = Reply { kind, body, head, max_tokens, prompt_text, store: &self.store };
        if stream {
            return Ok(reply.streamed(answer, fault, Arc::clone(cut)));
        }
        let mut response = reply.whole(answer).await?;
        if matches!(fault, Fault::Reset { .. }) {
            cut.store(true, Ordering::Relaxed);
        }
        if let (Kind::Openai(_), Some(value)) = (kind, self.orca(headers)) {
            response.headers_mut().insert("endpoint-load-metrics", value);
        }
        Ok(response)
    }

    fn prompts(&self, kind: Kind, body: &Map<String, Value>) -> Result<Vec<Prompt>, ApiError> {
        match kind {
            Kind::Openai(Api::Chat) => {
                self.check_tools(body)?;
                Ok(vec![Prompt::chat(&[], list(body, "messages"))])
            }
            Kind::Openai(Api::Completions) => Ok(completion_prompts(body.get("prompt").unwrap_or(&Value::Null))),
            Kind::Messages => Ok(vec![messages::prompt(body)]),
            Kind::Responses => self.responses_prompt(body).map(|prompt| vec![prompt]),
        }
    }

    /// The instructions, the conversation that it goes on from, and the input.
    fn responses_prompt(&self, body: &Map<String, Value>) -> Result<Prompt, ApiError> {
        let earlier = match text(body, "previous_response_id") {
            Some(id) => self.store.get(id).ok_or_else(|| ApiError::unknown_response(id))?.conversation,
            None => String::new(),
        };
        let before = [text(body, "instructions").unwrap_or(""), &earlier].into_iter().filter(|text| !text.is_empty());
        let before: Vec<&str> = before.collect();
        Ok(match text(body, "input") {
            Some(input) => {
                let message = serde_json::json!({"role": "user", "content": input});
                Prompt::chat(&before, std::slice::from_ref(&message))
            }
            None => Prompt::chat(&before, list(body, "input")),
        })
    }

    fn work(
        &self,
        kind: Kind,
        body: &Map<String, Value>,
        prompts: &[Prompt],
        adapter: Option<&str>,
    ) -> Result<Work, ApiError> {
        let (limits, default) = kind.limit_fields();
        let pool = &self.options.pool;
        let mut work = Work { sequences: Vec::new(), seeds: Vec::new(), max_tokens: 0 };
        for prompt in prompts {
            work.max_tokens = max_tokens(body, limits, default, prompt.tokens, pool.limits.max_model_len)?;
            for choice in 0..kind.choices(body) {
                let output_tokens = if flag(body, "ignore_eos") {
                    u32::MAX
                } else {
                    prompt.output_tokens(self.options.answers.as_deref(), &pool.model_name, choice)
                };
                work.sequences.push(Sequence {
                    prompt_tokens: prompt.tokens,
                    output_tokens,
                    max_tokens: work.max_tokens,
                    blocks: prompt.blocks(adapter),
                });
                work.seeds.push(prompt.seed(choice));
            }
        }
        Ok(work)
    }

    fn head(&self, kind: Kind, headers: &HeaderMap, prompt_tokens: u32, adapter: Option<&str>) -> Head {
        let client_id = headers.get("x-request-id").and_then(|id| id.to_str().ok()).map(str::to_owned);
        let random = format!("{:016x}", rand::random::<u64>());
        let id = match kind {
            Kind::Openai(Api::Completions) => format!("cmpl-{}", client_id.unwrap_or(random)),
            Kind::Openai(Api::Chat) | Kind::Messages => format!("chatcmpl-{}", client_id.unwrap_or(random)),
            Kind::Responses => format!("resp_{random}"),
        };
        Head {
            id,
            created: unix_seconds(),
            model: adapter.unwrap_or(&self.options.pool.served_model).to_owned(),
            prompt_tokens,
            cached_tokens: 0,
            details: self.options.switches.prompt_tokens_details,
        }
    }

    fn check_tools(&self, body: &Map<String, Value>) -> Result<(), ApiError> {
        let tools = body.get("tools").and_then(Value::as_array).is_some_and(|tools| !tools.is_empty());
        if !tools || self.options.switches.tool_call_parser {
            return Ok(());
        }
        match body.get("tool_choice") {
            Some(Value::String(choice)) if choice == "none" => Ok(()),
            Some(Value::String(choice)) if choice == "required" => {
                Err(ApiError::tools_without_parser(r#"tool_choice="required" requires --tool-call-parser to be set"#))
            }
            Some(Value::Object(choice)) => {
                let name = choice.get("function").and_then(|function| function["name"].as_str()).unwrap_or("");
                let message = format!(r#"tool_choice=function "{name}" requires --tool-call-parser to be set"#);
                Err(ApiError::tools_without_parser(&message))
            }
            _ => Err(ApiError::tools_without_parser(
                r#""auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set"#,
            )),
        }
    }
}

impl Reply<'_> {
    fn streamed(self, answer: Answer, fault: Fault, cut: Arc<AtomicBool>) -> Response<Body> {
        let choices = answer.seeds.len();
        let events = match self.kind {
            Kind::Openai(api) => {
                answer.events(chat::Events::new(api, usage_wanted(self.body), &self.head, choices), fault, cut)
            }
            Kind::Messages => answer.events(messages::Events::new(self.head), fault, cut),
            Kind::Responses => answer.events(responses::Events::new(self.frame()), fault, cut),
        };
        let mut response = Response::new(events);
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
        response
    }

    async fn whole(mut self, answer: Answer) -> Result<Response<Body>, ApiError> {
        let (finished, cached_tokens) = answer.collect().await;
        self.head.cached_tokens = cached_tokens;
        let text = match (self.kind, finished.first()) {
            (Kind::Openai(api), _) => chat::body(api, &self.head, &finished),
            (Kind::Messages, Some(choice)) => messages::body(&self.head, choice),
            (Kind::Responses, Some(choice)) => self.frame().finish(choice),
            (_, None) => return Err(ApiError::engine_dead()),
        };
        Ok(json(StatusCode::OK, text))
    }

    fn frame(self) -> Frame {
        Frame {
            head: self.head,
            message_id: format!("msg_{:016x}", rand::random::<u64>()),
            instructions: text(self.body, "instructions").map_or("null".into(), quote),
            previous: text(self.body, "previous_response_id").map(str::to_owned),
            max_output_tokens: self.max_tokens,
            prompt_text: self.prompt_text,
            store: (self.body.get("store") != Some(&Value::Bool(false))).then(|| Arc::clone(self.store)),
        }
    }
}

fn text<'a>(body: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    body.get(name).and_then(Value::as_str)
}

fn list<'a>(body: &'a Map<String, Value>, name: &str) -> &'a [Value] {
    body.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn usage_wanted(body: &Map<String, Value>) -> Usage {
    let options = body.get("stream_options").and_then(Value::as_object);
    let option = |name: &str| options.is_some_and(|options| flag(options, name));
    match (option("include_usage"), option("continuous_usage_stats")) {
        (false, _) => Usage::Never,
        (true, false) => Usage::Last,
        (true, true) => Usage::Continuous,
    }
}
