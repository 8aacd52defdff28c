//! Where Envoy retries, and what a request must say there.

use super::candidates::PromptTokens;
use super::{Ask, Elsewhere, Router};
use crate::fleet::{InstanceId, PoolId, Presence};
use crate::predictor::Estimate;
use crate::reckoning::{LoadNow, Standing};
use crate::score::{Candidate, Ranking};

/// Where Envoy may retry, most: it tries less often than that.
const FALLBACKS_MAX: usize = 8;
/// How many of them are of the chosen pool where other models may answer, too: Envoy's attempts must reach those.
const OWN_FALLBACKS_MAX: usize = 2;

impl Router {
    /// Where Envoy retries: in turn the best instance of another pool of the model, or of another model, where the request leaves the model
    /// to the router, and the best other one of the pool; then the rest of the pool. A second failure ends a request, so it must say something of the request rather than of
    /// the pool. A request that belongs to one instance has none.
    pub(super) fn fallbacks(
        &self,
        ask: &Ask<'_>,
        chosen: &Candidate,
        pool: PoolId,
        (candidates, ranking, firsts): (&[Candidate], &Ranking<'_>, &[usize]),
        loads: Option<&[LoadNow]>,
    ) -> Vec<InstanceId> {
        if ask.holder.is_some() {
            return Vec::new();
        }
        let mut others = self.of_other_pools(chosen.instance, pool, ask, loads);
        others.extend(self.of_other_models(ask, chosen, pool, candidates, firsts));
        let most = if others.is_empty() { FALLBACKS_MAX } else { OWN_FALLBACKS_MAX };
        let in_pool = |c: &Candidate| self.config.fleet.instance(c.instance).is_some_and(|i| i.pool == pool);
        let own = candidates.iter().enumerate().filter(|(_, c)| c.instance != chosen.instance && in_pool(c));
        let best = ranking.best(own.map(|(i, _)| i), most);
        let own: Vec<InstanceId> = best.iter().filter_map(|i| Some(candidates.get(*i)?.instance)).collect();
        let mut fallbacks = Vec::with_capacity(own.len().saturating_add(others.len()));
        let (mut own, mut others) = (own.into_iter(), others.into_iter());
        while own.len() > 0 || others.len() > 0 {
            fallbacks.extend(others.next());
            fallbacks.extend(own.next());
        }
        let rest = self.rest_of_pool(chosen.instance, pool, &fallbacks, loads);
        fallbacks.extend(rest.into_iter().filter(|i| ask.allows(*i)));
        fallbacks.truncate(FALLBACKS_MAX);
        fallbacks
    }

    /// The least busy instance of each other pool of the model: a new version that fails must not fail its clients.
    fn of_other_pools(
        &self,
        chosen: InstanceId,
        pool: PoolId,
        ask: &Ask<'_>,
        loads: Option<&[LoadNow]>,
    ) -> Vec<InstanceId> {
        let fleet = &self.config.fleet;
        let Some(own) = fleet.pool(pool).filter(|_| self.is_listed(pool)) else { return Vec::new() };
        let load = |i: &InstanceId| loads.and_then(|loads| loads.get(i.index()));
        let is_well = |i: &InstanceId| {
            let there =
                fleet.instance(*i).is_some_and(|i| matches!(i.presence, Presence::Present | Presence::Degraded));
            let serves = |load: &LoadNow| !load.unreachable && load.standing != Standing::Ejected;
            there && *i != chosen && ask.allows(*i) && self.sharing.is_alone(*i) && load(i).is_none_or(serves)
        };
        let in_flight = |i: &InstanceId| load(i).map_or(0.0, LoadNow::in_flight);
        let others = fleet.pools_by_id().filter(|(id, other)| *id != pool && other.model == own.model);
        let best = others.filter(|(id, _)| self.is_listed(*id)).filter_map(|(_, other)| {
            let well = other.instances.iter().copied().filter(is_well);
            well.min_by(|a, b| in_flight(a).total_cmp(&in_flight(b)))
        });
        best.collect()
    }

    /// Whether Envoy's configuration lists a pool's endpoints in the clusters of others: nobody can do that for those that are discovered,
    /// and it would send them what is meant for others where a pool has TLS or secrets.
    fn is_listed(&self, pool: PoolId) -> bool {
        self.config.fleet.pool(pool).is_some_and(|pool| !pool.discovered && !pool.upstream.is_apart())
    }

    /// The best instance of each other model that may answer.
    fn of_other_models(
        &self,
        ask: &Ask<'_>,
        chosen: &Candidate,
        pool: PoolId,
        candidates: &[Candidate],
        firsts: &[usize],
    ) -> Vec<InstanceId> {
        let fleet = &self.config.fleet;
        let may = self.config.envoy.model_fallback && self.config.names_no_model(ask.prompt.model.as_deref());
        if !may || !self.is_listed(pool) {
            return Vec::new();
        }
        let firsts = firsts.iter().filter_map(|i| candidates.get(*i)).filter(|c| c.model != chosen.model);
        let instances = firsts.map(|c| c.instance);
        // An address must tell the model that is meant.
        let may = |i: &InstanceId| {
            self.sharing.is_alone(*i) && fleet.instance(*i).is_some_and(|instance| self.is_listed(instance.pool))
        };
        instances.filter(may).collect()
    }

    /// What a request must say at the other pools among its fall-backs.
    pub(super) fn elsewhere(
        &self,
        ask: &Ask<'_>,
        chosen: PoolId,
        fallbacks: &[InstanceId],
        prompt: PromptTokens,
        estimates: &[(Estimate, bool)],
    ) -> Vec<Elsewhere> {
        let fleet = &self.config.fleet;
        let pools = fallbacks.iter().filter_map(|i| fleet.pool_of(*i)).filter(|(pool, _)| *pool != chosen);
        let limits = pools.map(|(id, pool)| {
            let (max_tokens, budget_left) = self.cap(ask, pool, prompt);
            let estimate =
                estimates.get(pool.model.index()).map(|(estimate, _)| (estimate.quality, estimate.quality_sd));
            Elsewhere {
                pool: id,
                model: pool.model,
                max_tokens,
                budget_left,
                unrevised_quality: estimate.unwrap_or_default(),
            }
        });
        limits.collect()
    }

    /// The instances of a pool that are no candidates, or not among the best, those that are worst off last.
    fn rest_of_pool(
        &self,
        chosen: InstanceId,
        pool: PoolId,
        best: &[InstanceId],
        loads: Option<&[LoadNow]>,
    ) -> Vec<InstanceId> {
        let fleet = &self.config.fleet;
        let Some(instances) = fleet.pool(pool).map(|p| &p.instances) else { return Vec::new() };
        let presence = |i: &InstanceId| fleet.instance(*i).map_or(Presence::Gone, |i| i.presence);
        let there = |i: &InstanceId| *i != chosen && presence(i) != Presence::Gone && !best.contains(i);
        let mut rest: Vec<InstanceId> = instances.iter().copied().filter(there).collect();
        rest.sort_by_key(|i| {
            let load = loads.and_then(|l| l.get(i.index()));
            let unreachable = load.is_some_and(|l| l.unreachable) || presence(i) == Presence::Unhealthy;
            let standing = load.map_or(Standing::Healthy, |l| l.standing);
            let worst_first = [Standing::Ejected, Standing::Busy, Standing::Doubted].map(|bad| standing == bad);
            (unreachable, worst_first)
        });
        rest
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::{Value, json};

    use super::*;
    use crate::config::{Config, RETRIES};
    use crate::fleet::PolicyId;
    use crate::learning::Learned;
    use crate::openai::{Api, Prompt, RequestScan};
    use crate::random::Random;
    use crate::router::{Decision, Verdict};
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    const STANDINGS: [Standing; 6] = [
        Standing::Healthy,
        Standing::Degraded(0.3),
        Standing::Doubted,
        Standing::Busy,
        Standing::HalfOpen,
        Standing::Ejected,
    ];

    fn prompt(model: &str) -> Prompt {
        let mut scan = RequestScan::new(Api::ChatCompletions);
        scan.push(json!({"model": model, "messages": [{"content": "hi"}]}).to_string().as_bytes());
        scan.finish().unwrap()
    }

    fn loads(router: &Router, random: &mut Random) -> Vec<LoadNow> {
        let load = |random: &mut Random| LoadNow {
            trust: random.uniform(),
            running: random.uniform() * 50.0,
            waiting: random.uniform() * 5.0,
            unreachable: random.below(6) == 0,
            standing: STANDINGS[random.below(STANDINGS.len())],
            ..LoadNow::default()
        };
        router.config().fleet.instances.iter().map(|_| load(random)).collect()
    }

    /// What must hold of a decision's fall-backs, whatever the load.
    fn check(router: &Router, decision: &Decision, names_a_model: bool, seed: u64) {
        let fleet = &router.config().fleet;
        let pool = |i: InstanceId| fleet.pool_of(i).unwrap().0;
        let unique: BTreeSet<InstanceId> = decision.to.fallbacks.iter().copied().collect();
        assert_eq!(unique.len(), decision.to.fallbacks.len(), "{seed}: none twice");
        assert!(!unique.contains(&decision.to.instance), "{seed}: not the one that failed");
        let kind = |pool: PoolId| fleet.model_of(&fleet.pools[pool.index()]).unwrap().kind;
        assert!(unique.iter().all(|i| kind(pool(*i)) == kind(decision.to.pool)), "{seed}: a model of that kind");
        let others: BTreeSet<PoolId> = unique.iter().map(|i| pool(*i)).filter(|p| *p != decision.to.pool).collect();
        assert!(!names_a_model || others.is_empty(), "{seed}: who names a model gets it");
        let said: BTreeSet<PoolId> = decision.to.elsewhere.iter().map(|elsewhere| elsewhere.pool).collect();
        assert_eq!(said, others, "{seed}: what to say is known of each other pool, and of no more");
        let attempts = decision.to.fallbacks.iter().take(*RETRIES.end());
        let reaches_other = attempts.clone().any(|i| pool(*i) != decision.to.pool);
        assert_eq!(reaches_other, !others.is_empty(), "{seed}: attempts reach the other models");
        if let (Some(first), false) = (decision.to.fallbacks.first(), others.is_empty()) {
            assert_ne!(pool(*first), decision.to.pool, "{seed}: a pool that fails as a whole costs no request");
        }
    }

    #[test]
    fn retries_reach_whoever_may_serve_and_nobody_else() {
        let json: Value = serde_json::from_str(include_str!("../../../envoy/routebalance.json")).unwrap();
        let router = Router::new(Config::parse(json.to_string().as_bytes()).unwrap(), None);
        let policies = router.config().policies.len();
        let (mut with_others, mut named) = (0, 0);
        for seed in 0..1_000 {
            let mut random = Random::new(seed);
            let loads = loads(&router, &mut random);
            let model = ["auto", "Qwen2.5-7B-Instruct", "Qwen2.5-72B-Instruct"][random.below(3)];
            let prompt = prompt(model);
            let all = router.config().fleet.instances_by_id().map(|(id, _)| id);
            let subset: Option<Vec<InstanceId>> =
                (seed % 2 == 0).then(|| all.filter(|_| random.below(3) == 0).collect());
            let ask = Ask::new(Api::ChatCompletions, &prompt, PolicyId::new(random.below(policies)));
            let ask = Ask { subset: subset.as_deref(), ..ask };
            let Verdict::Decided(decision) = router.route(&ask, Some(&loads), &Learned::default()) else { continue };
            check(&router, &decision, model != "auto", seed);
            let chosen = std::iter::once(&decision.to.instance).chain(&decision.to.fallbacks);
            assert!(chosen.copied().all(|i| ask.allows(i)), "{seed}: nobody whom the gateway does not allow");
            with_others += usize::from(!decision.to.elsewhere.is_empty());
            named += usize::from(model != "auto");
        }
        assert!(with_others > 100 && named > 500, "{with_others} {named}");
    }

    #[test]
    fn pools_that_nobody_can_list_are_left_out() {
        let decide = |changes: &[(&str, Value)]| {
            let mut json: Value = serde_json::from_str(include_str!("../../../envoy/routebalance.json")).unwrap();
            for (at, value) in changes {
                let (parent, field) = at.rsplit_once('/').unwrap();
                json.pointer_mut(parent).unwrap()[field] = value.clone();
            }
            let router = Router::new(Config::parse(json.to_string().as_bytes()).unwrap(), None);
            let prompt = prompt("auto");
            match router.route(&Ask::new(Api::ChatCompletions, &prompt, PolicyId::new(0)), None, &Learned::default()) {
                Verdict::Decided(decision) => decision.to.elsewhere.len(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(decide(&[]), 3);
        assert_eq!(decide(&[("/pools/3/instances", json!("discover"))]), 2, "a discovered pool has no instance yet");
        assert_eq!(decide(&[("/envoy/model_fallback", json!(false))]), 0);
    }
}
