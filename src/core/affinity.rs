//! Which instance has kept what a request needs: the prefill of its prompt's beginning, its session, its adapter.
//!
//! # Formula
//!
//! What is kept is worth the time that it saves, and enters the expected times of a candidate as that: `cached` tokens need no prefill, an
//! adapter that is not loaded costs `affinity.adapter_load_ms`. The longest match of a prompt on an instance, as a share of the prompt's
//! bytes, is its estimated cached tokens.
//!
//! # Intent
//!
//! Never a gate or a bonus: an instance that has the prefix and a queue loses against one that has neither as soon as its queue costs more
//! than the prefill, so cache affinity cannot pile all traffic on one instance. SLOs and the objectives `absolute` and `prices` see it; the
//! published T has no prefill.
//!
//! # What is kept
//!
//! [`Prefix`] hashes a prompt's beginning while the body is scanned; [`Keys`] are the names under which it is remembered; a [`Placement`]
//! says which instance was sent it, and [`Memory`] what follows for the next request.
//!
//! - **Prefixes.** The beginning is hashed in the order in which chat templates put it, whatever the order of the body's fields: the system
//!   prompt (`system`, `instructions`, or a first message of the system), then the conversation with its roles, texts, images and calls of
//!   tools. So a long system prompt is found again when it comes after the messages, when its text is a list of one part, and when the same
//!   conversation comes through `/v1/chat/completions`, `/v1/messages` or `/v1/responses`; `/v1/completions` is apart. Definitions of
//!   tools, `documents`, `chat_template`, `chat_template_kwargs`, `reasoning_effort`, `mm_processor_kwargs`, `cache_salt` and the like
//!   change the whole beginning. There is a hash for all that stands before the conversation and up to 39 more for blocks, each covering
//!   everything before it: the first eight have 256 bytes, each further one is a fifth of what is before it. Every worker notes which
//!   instance it has sent which blocks, and reads the others' notes in every tick (50 ms). A match is given up after 10 minutes, or once as
//!   many tokens were placed on the instance after it as fit in its KV cache (`limits.kv_tokens`).
//! - **Sessions.** Requests with the same value in `affinity.session_header` are taken to continue each other: the instance of the last one
//!   has kept as many tokens as that request's prompt and answer had. For prompts that are not rewritten from the first byte.
//! - **Adapters.** A LoRA adapter that vLLM serves under a name of its own is listed in `models[].adapters`. A request for that name goes
//!   to the instances of that model, `model` is left as it is, and an instance that does not report the adapter
//!   (`vllm:lora_requests_info`), and was not sent its requests of late, is expected to answer `affinity.adapter_load_ms` later.
//!
//! # Limits
//!
//! Tools that two APIs write in different shapes are different tools. What other gateways send is not known. Instances must cache prefixes
//! (vLLM does by default).

mod memory;
mod prefix;

pub use memory::{KEPT, Memory, Placement, Recall};
pub use prefix::{FIELDS_MAX, Fingerprint, KEYS_MAX, Prefix};

use std::time::Duration;

use crate::fleet::InstanceId;

/// How affinity is used.
#[derive(Clone, Debug, PartialEq)]
pub struct Affinity {
    /// Whether prefixes of prompts are remembered.
    pub prefix: bool,
    /// The request header that names a session, in lower case; `None` if none does.
    pub session_header: Option<String>,
    /// What it takes an instance to load an adapter.
    pub adapter_load: Duration,
}

/// What candidates have kept of what a request needs, in the order of the fleet's instances. Shorter lists end in nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Held<'a> {
    /// Prompt tokens that the instance need not prefill.
    pub cached_tokens: &'a [f64],
    /// Whether the instance has loaded the request's adapter.
    pub adapter: &'a [bool],
}

impl Held<'_> {
    /// Prompt tokens that an instance need not prefill; of a prompt, at least the last one has to be.
    #[inline]
    pub fn cached_tokens(&self, instance: InstanceId, prompt_tokens: f64) -> f64 {
        self.cached_tokens.get(instance.index()).copied().unwrap_or(0.0).min(prompt_tokens - 1.0).max(0.0)
    }

    /// Whether an instance has loaded the request's adapter.
    pub fn has_adapter(&self, instance: InstanceId) -> bool {
        self.adapter.get(instance.index()).copied().unwrap_or(false)
    }
}

/// The names under which what a request leaves behind is remembered.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Keys {
    /// For every block of the prompt's beginning: the hash of all up to its end, and what share of the prompt that is.
    prefix: Vec<(u64, f64)>,
    session: Option<u64>,
    adapter: Option<u64>,
}

impl Keys {
    /// Keys of a request. Prompts of different `kinds`, such as conversations and raw texts, share nothing; neither do those for
    /// different adapters, because an adapter changes the keys and values of every token.
    pub fn new(prefix: Option<&Prefix>, kind: u64, session: Option<&str>, adapter: Option<&str>) -> Keys {
        let name = |domain: u64, text: &str| prefix::hash(domain, text.as_bytes());
        let adapter = adapter.map(|adapter| name(ADAPTERS, adapter));
        let seed = prefix::mix(adapter.unwrap_or_default(), kind);
        Keys {
            prefix: prefix.map_or_else(Vec::new, |prefix| prefix.keys(seed)),
            session: session.filter(|session| !session.is_empty()).map(|session| name(SESSIONS ^ seed, session)),
            adapter,
        }
    }

    /// The key of an adapter alone: what an instance reports to have loaded.
    pub fn of_adapter(adapter: &str) -> Keys {
        Keys::new(None, 0, None, Some(adapter))
    }

    /// What an instance holds that was sent the request: `prompt_tokens`, of which it had `cached_tokens`, and an answer.
    pub fn placement(
        &self,
        instance: InstanceId,
        prompt_tokens: u64,
        cached_tokens: u64,
        output_tokens: u64,
        now: Duration,
    ) -> Placement {
        let tokens = |tokens: u64| u32::try_from(tokens).unwrap_or(u32::MAX);
        let held = prompt_tokens.saturating_add(output_tokens);
        Placement {
            at: now,
            instance,
            held_tokens: tokens(held),
            placed_tokens: tokens(held.saturating_sub(cached_tokens)),
            keys: self.prefix.iter().map(|(key, _)| *key).chain(self.session).chain(self.adapter).collect(),
        }
    }

    /// What the instance of a session holds once the answer is known; `None` if the request has no session.
    pub fn answered(&self, instance: InstanceId, held_tokens: u64, now: Duration) -> Option<Placement> {
        let held_tokens = u32::try_from(held_tokens).unwrap_or(u32::MAX);
        Some(Placement { at: now, instance, held_tokens, placed_tokens: 0, keys: vec![self.session?] })
    }
}

const SESSIONS: u64 = 0x7365_7373_696f_6e73;
const ADAPTERS: u64 = 0x6164_6170_7465_7273;
#[cfg(test)]
mod tests;
