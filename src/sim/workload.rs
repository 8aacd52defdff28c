//! What clients ask for, and when.

mod arrivals;

use std::sync::Arc;
use std::time::Duration;

pub use arrivals::Arrivals;

use crate::fault::Reply;
use routebalance_core::fleet::{Constraints, Fleet, LatencyProfile, Limits, ModelId, ModelKind};
use routebalance_core::openai::{Api, Prompt, RequestScan};
use routebalance_core::predictor::{Estimate, PriorSpread};
use routebalance_core::random::Random;
use routebalance_core::router::Outlook;

/// A kind of request: what the gateway sees of it, and the truth that it cannot know.
#[derive(Clone, Debug)]
pub struct Template {
    /// What the gateway reads.
    pub prompt: Prompt,
    /// What is expected of it; `None` lets the router's own predictor (or its priors) say.
    pub outlook: Option<Outlook>,
    /// Tokens to prefill.
    pub prompt_tokens: u32,
    /// Tokens that each model of the fleet really answers with.
    pub output_tokens: Vec<u32>,
    /// Quality of each model's answer, 0 to 1.
    pub quality: Vec<f64>,
    /// A hash for each whole block of [`BLOCK_TOKENS`](crate::engine::BLOCK_TOKENS) prompt tokens that covers all up to its
    /// end, as [`Engine::submit_blocks`](crate::engine::Engine::submit_blocks) takes them; empty if no other request shares
    /// any.
    pub blocks: Arc<[u64]>,
}

impl Template {
    /// A chat request with counts and no text, of which the gateway knows the prompt's length and nothing else.
    pub fn of_counts(prompt_tokens: u32, output_tokens: Vec<u32>, quality: Vec<f64>) -> Template {
        let mut prompt = RequestScan::new(Api::ChatCompletions).so_far();
        prompt.token_ids = u64::from(prompt_tokens);
        prompt.has_input = true;
        Template::from_prompt(prompt, prompt_tokens, output_tokens, quality)
    }

    /// A request that says this, of which nothing else is known and which shares nothing with others.
    pub fn from_prompt(prompt: Prompt, prompt_tokens: u32, output_tokens: Vec<u32>, quality: Vec<f64>) -> Template {
        Template { prompt, outlook: None, prompt_tokens, output_tokens, quality, blocks: Arc::default() }
    }
}

/// A request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arrival {
    /// When it reaches its gateway.
    pub at: Duration,
    /// Index of its template.
    pub template: usize,
    /// Index of the policy of its route.
    pub policy: usize,
    /// How long its client waits for the end of the answer; `None` for as long as it takes.
    pub patience: Option<Duration>,
    /// What it insists on; `None` for what its policy says.
    pub constraints: Option<Constraints>,
    /// What sets it apart from a stream of a client like all others.
    pub manner: Manner,
}

/// What sets a request apart from a stream of a client like all others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Manner {
    /// Whose it is.
    pub client: u32,
    /// Whether its answer comes in one piece, so that nothing of it is seen before its end.
    pub whole: bool,
    /// What comes of it wherever it is sent, if that is no answer.
    pub poison: Option<Reply>,
    /// Whether it never comes. What is drawn for it is drawn all the same, so that the others have the same luck with it as without.
    pub absent: bool,
}

impl Arrival {
    /// A request that waits for as long as it takes, and insists on what its policy says.
    pub fn new(at: Duration, template: usize, policy: usize) -> Arrival {
        Arrival { at, template, policy, patience: None, constraints: None, manner: Manner::default() }
    }
}

/// All requests of a simulation.
#[derive(Clone, Debug, Default)]
pub struct Workload {
    /// Kinds of requests.
    pub templates: Arc<[Template]>,
    /// Requests in order of time.
    pub arrivals: Vec<Arrival>,
}

impl Workload {
    /// Requests of one policy at these times, each of a kind drawn at random.
    pub fn drawn(templates: impl Into<Arc<[Template]>>, times: &[Duration], policy: usize, seed: u64) -> Workload {
        let templates = templates.into();
        let mut random = Random::for_use(seed, 1);
        let arrival = |at: &Duration| Arrival::new(*at, random.below(templates.len()), policy);
        let arrivals = times.iter().map(arrival).collect();
        Workload { templates, arrivals }
    }

    /// Requests of one policy at these times: passes over all kinds, each pass in an order of its own, so that kinds are as
    /// frequent as each other. No requests if there are no kinds.
    pub fn in_passes(templates: impl Into<Arc<[Template]>>, times: &[Duration], policy: usize, seed: u64) -> Workload {
        let templates = templates.into();
        let mut random = Random::for_use(seed, 1);
        let mut pass: Vec<usize> = Vec::new();
        let mut arrivals = Vec::with_capacity(times.len());
        for at in times {
            if pass.is_empty() {
                pass.extend(0..templates.len());
            }
            let drawn = random.below(pass.len());
            if drawn < pass.len() {
                let template = pass.swap_remove(drawn);
                arrivals.push(Arrival::new(*at, template, policy));
            }
        }
        Workload { templates, arrivals }
    }
}

/// Requests that look like chat: prompts and answers of log-normal length, a task that makes all models' answers longer or
/// shorter together, and estimates that know part of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ChatMix {
    /// Kinds of requests.
    pub templates: usize,
    /// Median prompt tokens.
    pub prompt_tokens: f64,
    /// Standard deviation of the logarithm of prompt tokens.
    pub prompt_spread: f64,
    /// Standard deviation of the logarithm of output tokens that estimates know of.
    pub known_spread: f64,
    /// Standard deviation of the logarithm of output tokens that nobody knows before.
    pub unknown_spread: f64,
}

/// Lengths as in `models/data`: output tokens scatter by 0.8 in the logarithm, of which the predictor leaves 0.45 unexplained.
impl Default for ChatMix {
    fn default() -> ChatMix {
        ChatMix { templates: 500, prompt_tokens: 200.0, prompt_spread: 0.7, known_spread: 0.65, unknown_spread: 0.45 }
    }
}

impl ChatMix {
    /// The templates for a fleet: output tokens and quality about the models' priors.
    pub fn templates(&self, fleet: &Fleet, seed: u64) -> Vec<Template> {
        let mut random = Random::for_use(seed, 3);
        (0..self.templates).map(|_| self.template(fleet, &mut random)).collect()
    }

    fn template(&self, fleet: &Fleet, random: &mut Random) -> Template {
        let prompt_tokens = tokens(self.prompt_tokens * (self.prompt_spread * random.normal()).exp());
        let task = (self.known_spread * random.normal()).exp();
        let difficulty = random.uniform();
        let (mut output_tokens, mut quality, mut estimates) = (Vec::new(), Vec::new(), Vec::new());
        for model in &fleet.models {
            let generates = model.kind == ModelKind::Generate;
            let mut estimate = Estimate::prior(model, &PriorSpread::default());
            estimate.output_tokens = (estimate.output_tokens * task).max(1.0);
            estimate.output_tokens_p80 = estimate.output_tokens * (0.84 * self.unknown_spread).exp();
            estimate.output_tokens_p90 = estimate.output_tokens * (1.28 * self.unknown_spread).exp();
            estimate.quality = (estimate.quality + 0.2 * (1.0 - 2.0 * difficulty)).clamp(0.0, 1.0);
            output_tokens.push(if generates {
                tokens(estimate.output_tokens * (self.unknown_spread * random.normal()).exp())
            } else {
                0
            });
            quality.push(if random.uniform() < estimate.quality { 1.0 } else { 0.0 });
            estimates.push((estimate, true));
        }
        let outlook = Outlook { estimates, familiarity: Some(1.0), prototype: None };
        Template { outlook: Some(outlook), ..Template::of_counts(prompt_tokens, output_tokens, quality) }
    }
}

/// Lengths are cut where the reference fleet's contexts are half full, so that every request fits everywhere.
fn tokens(value: f64) -> u32 {
    value.clamp(1.0, 4_096.0).round() as u32
}

/// Requests per second that one instance sustains when it gets nothing but these requests for one model.
///
/// The rate at which its time is fully used at the largest batch that it can hold: a request costs
/// `E[prompt] / prefill rate + E[output] tau(b) / b`, where `tau(b) = tpot (1 + growth (b - 1) + context growth b held / 1000)`,
/// `held` are the tokens that a running sequence holds on average over its steps, `E[(prompt + output / 2) output] / E[output]`,
/// and `b` is the smaller of `max_running` and the KV cache over them.
pub fn sustainable_rate(profile: &LatencyProfile, limits: &Limits, templates: &[Template], model: ModelId) -> f64 {
    let n = templates.len().max(1) as f64;
    let output = |t: &Template| t.output_tokens.get(model.index()).copied().map_or(0.0, f64::from);
    let mean = |value: &dyn Fn(&Template) -> f64| templates.iter().map(value).sum::<f64>() / n;
    let prompt_tokens = mean(&|t| f64::from(t.prompt_tokens));
    let output_tokens = mean(&output);
    let held = mean(&|t| (f64::from(t.prompt_tokens) + output(t) / 2.0) * output(t)) / output_tokens.max(1.0);
    let batch = (limits.kv_tokens as f64 / held.max(1.0)).floor().min(f64::from(limits.max_running)).max(1.0);
    let context = profile.tpot_growth_per_thousand_context_tokens * batch * held / 1e3;
    let tau = profile.tpot_ms / 1e3 * (1.0 + profile.tpot_growth_per_running * (batch - 1.0) + context);
    1.0 / (prompt_tokens / profile.prefill_tokens_per_second + output_tokens * tau / batch)
}

/// Requests per second that each pool sustains, all instances together, in the fleet's order. **Utilisation** of a pool is what
/// it is offered over this; of a fleet, what is offered over the sum over the pools of generating models.
pub fn sustainable_rates(fleet: &Fleet, templates: &[Template]) -> Vec<f64> {
    let rate = |pool: &routebalance_core::fleet::Pool| {
        let generates = fleet.model_of(pool).is_some_and(|m| m.kind == ModelKind::Generate);
        let each = if generates { sustainable_rate(&pool.profile, &pool.limits, templates, pool.model) } else { 0.0 };
        each * pool.instances.len() as f64
    };
    fleet.pools.iter().map(rate).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn passes_take_every_kind_once() {
        let templates: Vec<Template> = (0..50).map(|i| Template::of_counts(i, vec![1], vec![1.0])).collect();
        let times: Vec<Duration> = (0..120).map(Duration::from_secs).collect();
        let workload = Workload::in_passes(templates, &times, 2, 9);
        let kinds: Vec<usize> = workload.arrivals.iter().map(|a| a.template).collect();
        for pass in kinds.chunks(50) {
            let mut sorted = pass.to_vec();
            sorted.sort_unstable();
            sorted.dedup();
            assert_eq!(sorted.len(), pass.len());
        }
        assert_ne!(kinds[..50], kinds[50..100], "each pass has an order of its own");
        assert!(workload.arrivals.iter().zip(&times).all(|(a, at)| a.at == *at && a.policy == 2));
        assert!(Workload::in_passes(Vec::new(), &times, 0, 9).arrivals.is_empty());
    }

    #[test]
    fn an_instance_sustains_what_its_batch_and_its_cache_allow() {
        let profile = LatencyProfile {
            tpot_ms: 10.0,
            tpot_growth_per_running: 0.1,
            tpot_growth_per_thousand_context_tokens: 0.0,
            prefill_tokens_per_second: 1_000.0,
            overhead_ms: 20.0,
        };
        let templates = [Template::of_counts(100, vec![100], vec![1.0])];
        let rows = [
            ("by its batch", 4, 1_000_000, 1.0 / (0.1 + 100.0 * 0.013 / 4.0)),
            ("by its cache", 256, 300, 1.0 / (0.1 + 100.0 * 0.011 / 2.0)),
        ];
        for (name, max_running, kv_tokens, expected) in rows {
            let limits = Limits { max_running, kv_tokens, max_model_len: 8_192 };
            let rate = sustainable_rate(&profile, &limits, &templates, ModelId::new(0));
            assert!((rate - expected).abs() < 1e-9, "{name}: {rate}");
        }
    }

    /// The mean of a mix is the prior times `exp(sd^2 / 2)` of both spreads.
    #[test]
    fn a_chat_mix_is_about_the_priors() {
        let config = routebalance_core::config::Config::parse(include_bytes!("../../envoy/routebalance.json")).unwrap();
        let mix = ChatMix { templates: 20_000, ..ChatMix::default() };
        let templates = mix.templates(&config.fleet, 5);
        let mean = templates.iter().map(|t| f64::from(t.output_tokens[1])).sum::<f64>() / 20_000.0;
        let expected = 290.0 * f64::exp((0.65f64.powi(2) + 0.45f64.powi(2)) / 2.0);
        assert!((mean / expected - 1.0).abs() < 0.03, "{mean} tokens");
        assert!(templates.iter().all(|t| t.output_tokens[4] == 0), "an embedding has no tokens");
    }
}
