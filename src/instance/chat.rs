//! `/v1/chat/completions` and `/v1/completions`, field for field as vLLM 0.32 writes them.

use super::request::{ApiError, quote};
use super::stream::{Choice, Format};
use routebalance_sim::engine::FinishReason;

pub(super) const FINGERPRINT: &str = "vllm-0.32.0-d5329c73";

/// What all bodies and events of one request share.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) id: String,
    /// Unix seconds.
    pub(super) created: u64,
    /// The first served name, whatever the client called it; an adapter's own name.
    pub(super) model: String,
    pub(super) prompt_tokens: u32,
    /// Of those, the ones that were cached, once it is known.
    pub(super) cached_tokens: u32,
    /// vLLM's `--enable-prompt-tokens-details`.
    pub(super) details: bool,
}

/// Which of the two APIs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Api {
    Chat,
    Completions,
}

/// When `usage` is sent in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Usage {
    Never,
    Last,
    Continuous,
}

pub(super) fn finish_name(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}

/// The body of an answer that is not streamed.
pub(super) fn body(api: Api, head: &Head, choices: &[Choice]) -> String {
    let Head { id, created, model, prompt_tokens, cached_tokens, details } = head;
    let rendered: Vec<String> = choices
        .iter()
        .enumerate()
        .map(|(index, choice)| {
            let (text, finish) = (quote(&choice.text), finish_name(choice.finish));
            match api {
                Api::Chat => format!(
                    r#"{{"index":{index},"message":{{"role":"assistant","content":{text},"refusal":null,"annotations":null,"audio":null,"function_call":null,"reasoning":null}},"logprobs":null,"finish_reason":"{finish}","stop_reason":null,"token_ids":null,"routed_experts":null}}"#
                ),
                Api::Completions => format!(
                    r#"{{"index":{index},"text":{text},"logprobs":null,"finish_reason":"{finish}","stop_reason":null,"token_ids":null,"prompt_logprobs":null,"prompt_token_ids":null,"routed_experts":null}}"#
                ),
            }
        })
        .collect();
    let output: u32 = choices.iter().map(|choice| choice.tokens).sum();
    let total = prompt_tokens + output;
    let prompt_details = match (details, api) {
        (false, _) => "null".to_owned(),
        (true, api) => {
            let created = if api == Api::Chat { "0" } else { "null" };
            format!(r#"{{"cached_tokens":{cached_tokens},"created_cache_tokens":{created},"multimodal_tokens":null}}"#)
        }
    };
    let (object, tail) = match api {
        Api::Chat => ("chat.completion", r#""prompt_logprobs":null,"prompt_token_ids":null,"prompt_text":null,"#),
        Api::Completions => ("text_completion", ""),
    };
    format!(
        r#"{{"id":{},"object":"{object}","created":{created},"model":{},"choices":[{}],"service_tier":null,"system_fingerprint":"{FINGERPRINT}","usage":{{"prompt_tokens":{prompt_tokens},"total_tokens":{total},"completion_tokens":{output},"prompt_tokens_details":{prompt_details},"completion_tokens_details":null}},{tail}"kv_transfer_params":null,"ec_transfer_params":null,"metrics":null}}"#,
        quote(id),
        quote(model),
        rendered.join(",")
    )
}

/// The events of a streamed answer.
#[derive(Debug)]
pub(super) struct Events {
    api: Api,
    usage: Usage,
    /// Every event up to its choices.
    prefix: String,
    prompt_tokens: u32,
    details: bool,
    choices: usize,
    output: u32,
    roles_sent: bool,
}

impl Events {
    pub(super) fn new(api: Api, usage: Usage, head: &Head, choices: usize) -> Self {
        let object = match api {
            Api::Chat => "chat.completion.chunk",
            Api::Completions => "text_completion",
        };
        let prefix = format!(
            r#"data: {{"id":{},"object":"{object}","created":{},"model":{},"choices":["#,
            quote(&head.id),
            head.created,
            quote(&head.model)
        );
        let (prompt_tokens, details) = (head.prompt_tokens, head.details);
        Self { api, usage, prefix, prompt_tokens, details, choices, output: 0, roles_sent: false }
    }

    fn continuous_usage(&self) -> String {
        if self.usage != Usage::Continuous {
            return String::new();
        }
        let (prompt, output) = (self.prompt_tokens, self.output);
        let extra = if self.api == Api::Chat { r#","completion_tokens_details":null"# } else { "" };
        format!(
            r#","usage":{{"prompt_tokens":{prompt},"total_tokens":{},"completion_tokens":{output}{extra}}}"#,
            prompt + output
        )
    }
}

impl Format for Events {
    fn piece(&mut self, choice: usize, token: Option<&str>, finish: Option<FinishReason>, events: &mut Vec<String>) {
        let prefix = &self.prefix;
        if self.api == Api::Chat && !self.roles_sent {
            self.roles_sent = true;
            let usage = self.continuous_usage();
            events.extend((0..self.choices).map(|index| {
                format!(
                    "{prefix}{{\"index\":{index},\"delta\":{{\"role\":\"assistant\",\"content\":\"\"}},\"logprobs\":null,\"finish_reason\":null}}]{usage},\"prompt_token_ids\":null,\"prompt_text\":null}}\n\n"
                )
            }));
        }
        self.output += u32::from(token.is_some());
        let text = quote(token.unwrap_or(""));
        let usage = self.continuous_usage();
        let fingerprint = if finish.is_some() && self.usage == Usage::Never {
            format!(r#","system_fingerprint":"{FINGERPRINT}""#)
        } else {
            String::new()
        };
        let finish_reason = finish.map_or("null".to_owned(), |reason| format!("\"{}\"", finish_name(reason)));
        let choice = match self.api {
            Api::Chat => {
                let stop = if finish.is_some() { r#","stop_reason":null"# } else { "" };
                format!(
                    r#"{{"index":{choice},"delta":{{"content":{text}}},"logprobs":null,"finish_reason":{finish_reason}{stop},"token_ids":null}}"#
                )
            }
            Api::Completions => format!(
                r#"{{"index":{choice},"text":{text},"logprobs":null,"finish_reason":{finish_reason},"stop_reason":null,"prompt_token_ids":null,"token_ids":null}}"#
            ),
        };
        events.push(format!("{prefix}{choice}]{usage}{fingerprint}}}\n\n"));
    }

    fn close(&mut self, cached: u32, events: &mut Vec<String>) {
        if self.usage != Usage::Never {
            let (prompt, output) = (self.prompt_tokens, self.output);
            let details = match (self.details, self.api) {
                (false, _) => String::new(),
                (true, Api::Chat) => {
                    format!(r#","prompt_tokens_details":{{"cached_tokens":{cached},"created_cache_tokens":0}}"#)
                }
                (true, Api::Completions) => format!(r#","prompt_tokens_details":{{"cached_tokens":{cached}}}"#),
            };
            events.push(format!(
                "{}],\"usage\":{{\"prompt_tokens\":{prompt},\"total_tokens\":{},\"completion_tokens\":{output}{details}}},\"system_fingerprint\":\"{FINGERPRINT}\"}}\n\n",
                self.prefix,
                prompt + output
            ));
        }
        events.push("data: [DONE]\n\n".into());
    }

    fn fail(&self, error: &ApiError) -> Option<Vec<String>> {
        Some(vec![format!("data: {}\n\n", error.event_data()), "data: [DONE]\n\n".into()])
    }
}
