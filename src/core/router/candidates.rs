//! What may serve a request: every instance of the allowed models, with what is expected of it.

use super::{Ask, Outlook, Router};
use crate::admission::spending;
use crate::fleet::{InstanceId, Model, ModelId, ModelKind, Objective, Pool, PoolId, Presence};
use crate::latency::{self, Speed, Tempo, Work};
use crate::learning::Learned;
use crate::openai::Prompt;
use crate::predictor::Estimate;
use crate::reckoning::{LoadNow, Standing};
use crate::score::Candidate;

impl Router {
    /// Every instance of the allowed models. One whose context is too short for the prompt is a candidate only if there is no
    /// longer one; one that failures have ejected, that nobody answers at, or that Envoy holds for ill, only if there is no other
    /// at all; one that is doubted, or that the shares of traffic set aside, only if its model has no other. One that has gone is none.
    pub(super) fn candidates(
        &self,
        ask: &Ask<'_>,
        models: &[ModelId],
        estimates: &[Estimate],
        prompt: PromptTokens,
        loads: Option<&[LoadNow]>,
        learned: &Learned,
    ) -> Vec<Candidate> {
        let fleet = &self.config.fleet;
        let adapter = self.adapter(ask.prompt);
        let there = |i: &InstanceId| fleet.instance(*i).is_some_and(|i| i.presence != Presence::Gone);
        let holder = ask.holder.filter(there);
        let offer = |(p, pool): (PoolId, &Pool)| {
            let wanted = holder.is_some() || models.contains(&pool.model);
            let estimate = estimates.get(pool.model.index()).filter(|_| wanted)?;
            self.offer(ask, (p, pool), estimate, prompt, learned)
        };
        let by_load = self.config.policy(ask.policy).is_some_and(|p| p.objective == Objective::LeastLoad);
        let seconds = |pool: &Pool, load: &LoadNow, output_tokens: f64| {
            if by_load {
                latency::owed_seconds(&pool.profile, &pool.limits, load)
            } else {
                latency::paper_seconds(&pool.profile, &pool.limits, load, output_tokens.max(1.0))
            }
        };
        let offers: Vec<Option<Offer>> = fleet.pools_by_id().map(offer).collect();
        let unknown = LoadNow::default();
        let mut sorted = Sorted::with_capacity(if holder.is_some() { 1 } else { fleet.instances.len() });
        let aside = ask.lot.filter(|_| holder.is_none()).map(|lot| self.sharing.set_aside(fleet, loads, lot));
        let is_aside = |i: InstanceId| aside.as_ref().is_some_and(|aside| aside.get(i.index()) == Some(&true));
        for (i, instance) in fleet.instances_by_id() {
            let wanted = holder.is_none_or(|h| h == i) && instance.presence != Presence::Gone && ask.allows(i);
            let (Some(pool), Some(Some(offer)), true) =
                (fleet.pool(instance.pool), offers.get(instance.pool.index()), wanted)
            else {
                continue;
            };
            let load = loads.and_then(|l| l.get(i.index())).unwrap_or(&unknown);
            let work = Work { cached_tokens: ask.held.cached_tokens(i, offer.work.prompt_tokens), ..offer.work };
            let forecast = latency::forecast_at(&offer.tempo, &pool.limits, load, &work);
            let forecast = self.after_loading(ask, adapter, i, forecast);
            let slowdown = load.standing.slowdown();
            let output_tokens = offer.output_tokens;
            let candidate = Candidate {
                instance: i,
                model: pool.model,
                quality: offer.quality,
                output_tokens,
                output_tokens_p80: offer.output_tokens_p80,
                seconds: slowdown * seconds(pool, load, output_tokens),
                forecast,
                ttft_seconds: slowdown * forecast.ttft_seconds,
                tpot_seconds: forecast.tpot_seconds,
                e2e_seconds: slowdown * forecast.e2e_seconds,
                delay_seconds: slowdown * latency::delay_seconds(&offer.tempo, load, &work),
                idle_seconds: offer.idle_seconds,
                usd: offer.usd - work.cached_tokens * offer.usd_per_cached_token,
                in_flight: load.in_flight(),
                last_dispatch: load.last_dispatch,
            };
            let list = if load.unreachable || instance.presence == Presence::Unhealthy {
                &mut sorted.unreachable
            } else if offer.work.prompt_tokens >= f64::from(pool.limits.max_model_len) {
                &mut sorted.too_short
            } else {
                match load.standing {
                    Standing::Ejected => &mut sorted.ejected,
                    Standing::Busy => &mut sorted.busy,
                    Standing::Doubted => &mut sorted.doubted,
                    _ if is_aside(i) => &mut sorted.set_aside,
                    Standing::Healthy | Standing::Degraded(_) | Standing::HalfOpen => &mut sorted.fitting,
                }
            };
            list.push(candidate);
        }
        sorted.best()
    }

    /// What a pool makes of a request, whatever the load; `None` if nobody knows its model.
    fn offer(
        &self,
        ask: &Ask<'_>,
        (id, pool): (PoolId, &Pool),
        estimate: &Estimate,
        prompt: PromptTokens,
        learned: &Learned,
    ) -> Option<Offer> {
        let model = self.config.fleet.model_of(pool)?;
        let (tariff, prompt_tokens) = (self.config.fleet.tariff_of(pool)?, prompt.for_model(model));
        let answer = self.answer(ask, pool, prompt_tokens);
        let output_tokens = answer.tokens(estimate.output_tokens);
        let work = answer.work(prompt_tokens, estimate);
        let unknown = || Speed::default().tempo_on(&pool.profile);
        let tempo = learned.speed(id).map_or_else(unknown, |speed| speed.tempo_on(&pool.profile));
        Some(Offer {
            quality: estimate.quality,
            output_tokens,
            output_tokens_p80: answer.tokens(estimate.output_tokens_p80),
            usd: tariff.prompt_usd(prompt_tokens, 0.0) + output_tokens * tariff.usd_per_output_token,
            usd_per_cached_token: tariff.usd_per_input_token - tariff.usd_per_cached_input_token,
            idle_seconds: latency::idle_seconds(&pool.profile, &work),
            work,
            tempo,
        })
    }

    /// Expected output tokens on the model that would write most of them.
    pub(crate) fn longest_output_tokens(&self, ask: &Ask<'_>, outlook: &Outlook, learned: &Learned) -> f64 {
        let models = self.allowed_models(ask).unwrap_or_default();
        let prompt = PromptTokens::from_prompt(ask.prompt);
        let pools = self.config.fleet.pools.iter().filter(|pool| models.contains(&pool.model));
        let tokens = pools.filter_map(|pool| {
            let (estimate, _) = outlook.estimates.get(pool.model.index())?;
            let estimate = learned.applied(pool.model, outlook.prototype, estimate);
            let prompt_tokens = prompt.for_model(self.config.fleet.model_of(pool)?);
            Some(self.answer(ask, pool, prompt_tokens).tokens(estimate.output_tokens))
        });
        tokens.fold(0.0, f64::max)
    }

    /// What a request, and its budget, allow its answer to be on a pool.
    pub(super) fn answer(&self, ask: &Ask<'_>, pool: &Pool, prompt_tokens: f64) -> AnswerLimits {
        let model = self.config.fleet.model_of(pool).filter(|m| m.kind == ModelKind::Generate);
        let model = model.filter(|_| ask.api.generates());
        let answers =
            if model.is_some() { f64::from(ask.prompt.n.max(1)) * f64::from(ask.prompt.prompts.max(1)) } else { 0.0 };
        let asked = ask.prompt.max_tokens.map_or(f64::INFINITY, f64::from).max(1.0);
        let budget = self.constraints(ask).budget;
        let tariff = model.and_then(|_| self.config.fleet.tariff_of(pool));
        let left = tariff.and_then(|tariff| spending::tokens_left(&budget, &tariff, prompt_tokens, answers));
        AnswerLimits { answers, asked: asked.min(f64::from(pool.limits.max_model_len)), left }
    }
}

/// Candidates by what speaks against them.
#[derive(Default)]
struct Sorted {
    fitting: Vec<Candidate>,
    set_aside: Vec<Candidate>,
    doubted: Vec<Candidate>,
    busy: Vec<Candidate>,
    ejected: Vec<Candidate>,
    too_short: Vec<Candidate>,
    unreachable: Vec<Candidate>,
}

impl Sorted {
    /// Room for so many against whom nothing speaks.
    fn with_capacity(fitting: usize) -> Sorted {
        Sorted { fitting: Vec::with_capacity(fitting), ..Sorted::default() }
    }

    /// Those that may serve: the best kind of which there are any.
    fn best(self) -> Vec<Candidate> {
        let Sorted { mut fitting, set_aside, doubted, busy, ejected, too_short, unreachable } = self;
        for mut reserve in [set_aside, doubted] {
            reserve.retain(|candidate| !fitting.iter().any(|other| other.model == candidate.model));
            fitting.append(&mut reserve);
        }
        [fitting, busy, ejected, too_short, unreachable].into_iter().find(|c| !c.is_empty()).unwrap_or_default()
    }
}

/// What is the same for all instances of a pool.
struct Offer {
    quality: f64,
    output_tokens: f64,
    output_tokens_p80: f64,
    usd: f64,
    /// What a prompt token costs less if it is cached.
    usd_per_cached_token: f64,
    idle_seconds: f64,
    /// On an instance that has kept nothing.
    work: Work,
    tempo: Tempo,
}

/// How long the answer to a request may be.
pub(super) struct AnswerLimits {
    /// Answers asked for; 0 where nothing is generated.
    answers: f64,
    /// Most tokens of each that client and context allow.
    asked: f64,
    /// Most tokens of each that the budget leaves.
    left: Option<u32>,
}

impl AnswerLimits {
    /// Whether anything is generated.
    pub(super) fn generates(&self) -> bool {
        self.answers > 0.0
    }

    /// Answers asked for.
    pub(super) fn count(&self) -> f64 {
        self.answers
    }

    /// Most tokens of each answer, whatever the budget.
    pub(super) fn asked(&self) -> f64 {
        self.asked
    }

    /// Most tokens of each answer that the budget leaves, if there is one.
    pub(super) fn left(&self) -> Option<u32> {
        self.left
    }

    /// Whether the tokens of the response are those of one answer.
    pub(super) fn is_one(&self) -> bool {
        self.answers == 1.0
    }

    fn max_tokens(&self) -> f64 {
        self.asked.min(self.left.map_or(f64::INFINITY, f64::from))
    }

    /// Tokens of all answers, if each would have so many.
    pub(super) fn tokens(&self, of_each: f64) -> f64 {
        of_each.clamp(1.0, self.max_tokens()) * self.answers
    }

    /// What the request makes an instance do. Several answers are written side by side.
    pub(super) fn work(&self, prompt_tokens: f64, estimate: &Estimate) -> Work {
        let output_tokens = estimate.output_tokens.clamp(1.0, self.max_tokens()) * self.answers.min(1.0);
        Work { prompt_tokens, cached_tokens: 0.0, output_tokens }
    }
}

/// What chat templates put around a message, at least.
const TOKENS_PER_MESSAGE_MIN: f64 = 4.0;

/// Tokens of everything that is prefilled.
#[derive(Clone, Copy, Debug)]
pub(super) struct PromptTokens {
    /// Text, whatever field it stands in, prompts of token ids, and tool definitions at four bytes a token.
    pub(super) text: f64,
    /// Parts that are no text; a model says what each costs.
    media_parts: f64,
}

impl PromptTokens {
    pub(super) fn from_prompt(prompt: &Prompt) -> PromptTokens {
        let texts =
            [prompt.text.tokens_to_read(), prompt.unread.estimated_tokens(), prompt.replaced_tokens, prompt.token_ids];
        let tokens = texts.into_iter().fold(0_u64, u64::saturating_add) as f64 + prompt.tool_bytes as f64 / 4.0;
        PromptTokens {
            text: tokens.max(TOKENS_PER_MESSAGE_MIN * f64::from(prompt.messages)),
            media_parts: prompt.media_parts.into(),
        }
    }

    /// What the prompt is to a model.
    pub(super) fn for_model(self, model: &Model) -> f64 {
        self.text + self.media_parts * model.tokens_per_media_part
    }
}
