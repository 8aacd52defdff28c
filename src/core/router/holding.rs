//! What instances have kept, as the router asks for it and leaves it behind.

use std::time::Duration;

use super::{Ask, Decision, Expected, Router, candidates};
use crate::affinity::{Keys, Memory, Placement, Recall};
use crate::fleet::InstanceId;
use crate::latency::Forecast;
use crate::openai::{Api, Prompt};

impl Router {
    /// The names under which what a request leaves on its instance is remembered; `session` is what its session header says.
    pub fn keys(&self, api: Api, prompt: &Prompt, session: Option<&str>) -> Keys {
        let prefix = Some(&prompt.prefix).filter(|_| self.config.affinity.prefix);
        Keys::new(prefix, kind(api) as u64, session, self.adapter(prompt))
    }

    /// What the instances hold of what a request needs.
    pub fn recall(&self, memory: &Memory, keys: &Keys, prompt: &Prompt, now: Duration) -> Recall {
        memory.recall(keys, candidates::PromptTokens::from_prompt(prompt).text, now)
    }

    /// The adapter that a request asks for.
    pub(super) fn adapter<'a>(&self, prompt: &'a Prompt) -> Option<&'a str> {
        prompt.model.as_deref().filter(|name| self.config.fleet.model_with_adapter(name).is_some())
    }

    /// What is expected of a request on an instance that may have to load the adapter first.
    #[inline]
    pub(super) fn after_loading(
        &self,
        ask: &Ask<'_>,
        adapter: Option<&str>,
        instance: InstanceId,
        forecast: Forecast,
    ) -> Forecast {
        let loads = adapter.is_some() && !ask.held.has_adapter(instance);
        forecast.after(if loads { self.config.affinity.adapter_load.as_secs_f64() } else { 0.0 })
    }
}

/// One API for all that render their prompts the same way: a conversation has the same beginning whichever it comes through.
fn kind(api: Api) -> Api {
    match api {
        Api::ChatCompletions | Api::Responses | Api::Messages | Api::CountTokens => Api::ChatCompletions,
        Api::Completions | Api::Embeddings | Api::Tokenize | Api::Pooling | Api::Named => api,
    }
}

impl Decision {
    /// What its instance holds once it has served the request; `None` where nothing is generated.
    pub fn placement(&self, keys: &Keys, now: Duration) -> Option<Placement> {
        let Expected { prompt_tokens, cached_tokens, output_tokens, .. } = self.expected;
        self.generates().then(|| keys.placement(self.to.instance, prompt_tokens, cached_tokens, output_tokens, now))
    }
}
