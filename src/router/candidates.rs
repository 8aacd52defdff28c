//! What may serve a request: every instance of the allowed models, with what is expected of it, and where Envoy retries.

use super::{Ask, Elsewhere, Outlook, Router, admitting};
use crate::admission::spending;
use crate::fleet::{ModelKind, Objective, Pool, Presence};
use crate::health::Standing;
use crate::latency::{self, Speed, Work};
use crate::learning::Learned;
use crate::openai::{Api, Prompt};
use crate::predictor::Estimate;
use crate::reckoning::LoadNow;
use crate::score::{Candidate, Ranking};

/// Where Envoy may retry, most: it tries less often than that.
const FALLBACKS_MAX: usize = 8;
/// How many of them are of the chosen pool where other models may answer, too: Envoy's attempts must reach those.
const OWN_FALLBACKS_MAX: usize = 2;

impl Router {
    /// Every instance of the allowed models. One whose context is too short for the prompt is a candidate only if there is no
    /// longer one; one that failures have ejected, that nobody answers at, or that Envoy holds for ill, only if there is no other
    /// at all. One that has gone is none.
    pub(super) fn candidates(
        &self,
        ask: &Ask<'_>,
        models: &[usize],
        estimates: &[Estimate],
        prompt_tokens: f64,
        loads: Option<&[LoadNow]>,
        learned: &Learned,
    ) -> Vec<Candidate> {
        let fleet = &self.config.fleet;
        let adapter = self.adapter(ask.prompt);
        let there = |i: &usize| fleet.instances.get(*i).is_some_and(|i| i.presence != Presence::Gone);
        let holder = ask.holder.filter(there);
        let offer = |(p, pool): (usize, &Pool)| {
            let wanted = holder.is_some() || models.contains(&pool.model);
            let estimate = estimates.get(pool.model).filter(|_| wanted)?;
            self.offer(ask, (p, pool), estimate, prompt_tokens, learned)
        };
        let by_load = self.config.policies.get(ask.policy).is_some_and(|p| p.objective == Objective::LeastLoad);
        let seconds = |pool: &Pool, load: &LoadNow, output_tokens: f64| {
            if by_load {
                latency::owed_seconds(&pool.profile, &pool.limits, load)
            } else {
                latency::paper_seconds(&pool.profile, &pool.limits, load, output_tokens.max(1.0))
            }
        };
        let offers: Vec<Option<Offer>> = fleet.pools.iter().enumerate().map(offer).collect();
        let unknown = LoadNow::default();
        let mut fitting = Vec::with_capacity(if holder.is_some() { 1 } else { fleet.instances.len() });
        let (mut busy, mut ejected) = (Vec::new(), Vec::new());
        let (mut too_short, mut unreachable) = (Vec::new(), Vec::new());
        for (i, instance) in fleet.instances.iter().enumerate() {
            let wanted = holder.is_none_or(|h| h == i) && instance.presence != Presence::Gone;
            let (Some(pool), Some(Some(offer)), true) =
                (fleet.pools.get(instance.pool), offers.get(instance.pool), wanted)
            else {
                continue;
            };
            let load = loads.and_then(|l| l.get(i)).unwrap_or(&unknown);
            let work = Work { cached_tokens: ask.held.cached_tokens(i, prompt_tokens), ..offer.work };
            let forecast = latency::forecast(&pool.profile, &pool.limits, load, &work, &offer.speed);
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
                ttft_seconds: slowdown * forecast.ttft,
                tpot_seconds: forecast.tpot,
                e2e_seconds: slowdown * forecast.e2e,
                delay_seconds: slowdown * latency::delay_seconds(&pool.profile, load, &work, &offer.speed),
                idle_seconds: offer.idle_seconds,
                usd: offer.usd,
                in_flight: load.in_flight(),
                last_dispatch: load.last_dispatch,
            };
            if load.unreachable || instance.presence == Presence::Unhealthy {
                unreachable.push(candidate);
            } else if prompt_tokens >= f64::from(pool.limits.max_model_len) {
                too_short.push(candidate);
            } else if load.standing == Standing::Ejected {
                ejected.push(candidate);
            } else if load.standing == Standing::Busy {
                busy.push(candidate);
            } else {
                fitting.push(candidate);
            }
        }
        [fitting, busy, ejected, too_short, unreachable].into_iter().find(|c| !c.is_empty()).unwrap_or_default()
    }

    /// What a pool makes of a request, whatever the load; `None` if nobody knows its model.
    fn offer(
        &self,
        ask: &Ask<'_>,
        (index, pool): (usize, &Pool),
        estimate: &Estimate,
        prompt_tokens: f64,
        learned: &Learned,
    ) -> Option<Offer> {
        let tariff = &self.config.fleet.model_of(pool)?.tariff;
        let answer = self.answer(ask, pool, prompt_tokens);
        let output_tokens = answer.tokens(estimate.output_tokens);
        let work = answer.work(prompt_tokens, estimate);
        let speed = learned.speed(index).copied().unwrap_or_default();
        Some(Offer {
            quality: estimate.quality,
            output_tokens,
            output_tokens_p80: answer.tokens(estimate.output_tokens_p80),
            usd: prompt_tokens * tariff.usd_per_input_token + output_tokens * tariff.usd_per_output_token,
            idle_seconds: latency::idle_seconds(&pool.profile, &work),
            work,
            speed: Speed { pace: Some(speed.pace_on(&pool.profile)), ..speed },
        })
    }

    /// Expected output tokens on the model that would write most of them.
    pub(crate) fn longest_output_tokens(&self, ask: &Ask<'_>, outlook: &Outlook, learned: &Learned) -> f64 {
        let models = self.allowed_models(ask).unwrap_or_default();
        let prompt_tokens = prompt_tokens(ask.prompt);
        let pools = self.config.fleet.pools.iter().filter(|pool| models.contains(&pool.model));
        let tokens = pools.filter_map(|pool| {
            let (estimate, _) = outlook.estimates.get(pool.model)?;
            let estimate = learned.applied(pool.model, outlook.prototype, estimate);
            Some(self.answer(ask, pool, prompt_tokens).tokens(estimate.output_tokens))
        });
        tokens.fold(0.0, f64::max)
    }

    /// What a request, and its budget, allow its answer to be on a pool.
    pub(super) fn answer(&self, ask: &Ask<'_>, pool: &Pool, prompt_tokens: f64) -> Answer {
        let model = self.config.fleet.model_of(pool).filter(|m| m.kind == ModelKind::Generate);
        let model = model.filter(|_| ask.api != Api::CountTokens);
        let answers =
            if model.is_some() { f64::from(ask.prompt.n.max(1)) * f64::from(ask.prompt.prompts.max(1)) } else { 0.0 };
        let asked = ask.prompt.max_tokens.map_or(f64::INFINITY, f64::from).max(1.0);
        let budget = self.constraints(ask).budget;
        let left = model.and_then(|m| spending::tokens_left(&budget, &m.tariff, prompt_tokens, answers));
        Answer { answers, asked: asked.min(f64::from(pool.limits.max_model_len)), left }
    }

    /// Where Envoy retries: in turn the best instance of another model, where the request leaves the model to the router, and the best other
    /// one of the pool; then the rest of the pool. A second failure ends a request, so it must say something of the request rather than of
    /// the pool. A request that belongs to one instance has none.
    pub(super) fn fallbacks(
        &self,
        ask: &Ask<'_>,
        chosen: &Candidate,
        pool: usize,
        (candidates, ranking): (&[Candidate], &Ranking<'_>),
        loads: Option<&[LoadNow]>,
    ) -> Vec<usize> {
        if ask.holder.is_some() {
            return Vec::new();
        }
        let others = self.of_other_models(ask, chosen, pool, candidates, ranking);
        let most = if others.is_empty() { FALLBACKS_MAX } else { OWN_FALLBACKS_MAX };
        let in_pool = |c: &Candidate| self.config.fleet.instances.get(c.instance).is_some_and(|i| i.pool == pool);
        let own = candidates.iter().enumerate().filter(|(_, c)| c.instance != chosen.instance && in_pool(c));
        let best = ranking.best(own.map(|(i, _)| i), most);
        let own: Vec<usize> = best.iter().filter_map(|i| Some(candidates.get(*i)?.instance)).collect();
        let mut fallbacks = Vec::with_capacity(own.len().saturating_add(others.len()));
        let (mut own, mut others) = (own.into_iter(), others.into_iter());
        while own.len() > 0 || others.len() > 0 {
            fallbacks.extend(others.next());
            fallbacks.extend(own.next());
        }
        fallbacks.extend(self.rest_of_pool(chosen.instance, pool, &fallbacks, loads));
        fallbacks.truncate(FALLBACKS_MAX);
        fallbacks
    }

    /// The best instance of each other model that may answer. Envoy's configuration lists their endpoints in the pool's cluster, which
    /// nobody can do for those that are discovered.
    fn of_other_models(
        &self,
        ask: &Ask<'_>,
        chosen: &Candidate,
        pool: usize,
        candidates: &[Candidate],
        ranking: &Ranking<'_>,
    ) -> Vec<usize> {
        let fleet = &self.config.fleet;
        let is_listed = |pool: usize| fleet.pools.get(pool).is_some_and(|pool| !pool.discovered);
        let may = self.config.envoy.model_fallback && self.config.names_no_model(ask.prompt.model.as_deref());
        if !may || !is_listed(pool) {
            return Vec::new();
        }
        let firsts = ranking.of_models();
        let firsts = firsts.iter().filter_map(|i| candidates.get(*i)).filter(|c| c.model != chosen.model);
        let instances = firsts.map(|c| c.instance);
        instances.filter(|i| fleet.instances.get(*i).is_some_and(|instance| is_listed(instance.pool))).collect()
    }

    /// What a request must say at the other pools among its fall-backs.
    pub(super) fn elsewhere(
        &self,
        ask: &Ask<'_>,
        chosen: usize,
        fallbacks: &[usize],
        prompt_tokens: f64,
        estimates: &[(Estimate, bool)],
    ) -> Vec<Elsewhere> {
        let fleet = &self.config.fleet;
        let pools = fallbacks.iter().filter_map(|i| fleet.pool_of(*i)).filter(|(pool, _)| *pool != chosen);
        let limits = pools.map(|(index, pool)| {
            let left = self.answer(ask, pool, prompt_tokens).left();
            let max_tokens = admitting::cap(ask.prompt, left, prompt_tokens, pool.limits.max_model_len);
            let estimate = estimates.get(pool.model).map(|(estimate, _)| (estimate.quality, estimate.quality_sd));
            Elsewhere { pool: index, model: pool.model, max_tokens, unrevised_quality: estimate.unwrap_or_default() }
        });
        limits.collect()
    }

    /// The instances of a pool that are no candidates, or not among the best, those that are worst off last.
    fn rest_of_pool(&self, chosen: usize, pool: usize, best: &[usize], loads: Option<&[LoadNow]>) -> Vec<usize> {
        let fleet = &self.config.fleet;
        let Some(instances) = fleet.pools.get(pool).map(|p| &p.instances) else { return Vec::new() };
        let presence = |i: &usize| fleet.instances.get(*i).map_or(Presence::Gone, |i| i.presence);
        let there = |i: &usize| *i != chosen && presence(i) != Presence::Gone && !best.contains(i);
        let mut rest: Vec<usize> = instances.iter().copied().filter(there).collect();
        rest.sort_by_key(|i| {
            let load = loads.and_then(|l| l.get(*i));
            let unreachable = load.is_some_and(|l| l.unreachable) || presence(i) == Presence::Unhealthy;
            let standing = load.map_or(Standing::Healthy, |l| l.standing);
            (unreachable, standing == Standing::Ejected, standing == Standing::Busy)
        });
        rest
    }
}

/// What is the same for all instances of a pool.
struct Offer {
    quality: f64,
    output_tokens: f64,
    output_tokens_p80: f64,
    usd: f64,
    idle_seconds: f64,
    /// On an instance that has kept nothing.
    work: Work,
    /// With its pace, so that it is not made of the profile for each instance.
    speed: Speed,
}

/// How long the answer to a request may be.
pub(super) struct Answer {
    /// Answers asked for; 0 where nothing is generated.
    answers: f64,
    /// Most tokens of each that client and context allow.
    asked: f64,
    /// Most tokens of each that the budget leaves.
    left: Option<u32>,
}

impl Answer {
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

/// Tokens of everything that is prefilled: text, token-id prompts, tool definitions at four bytes a token.
pub(super) fn prompt_tokens(prompt: &Prompt) -> f64 {
    (prompt.text.estimated_tokens() as f64) + prompt.token_ids as f64 + prompt.tool_bytes as f64 / 4.0
}
