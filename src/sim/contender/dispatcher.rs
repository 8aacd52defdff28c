//! Dispatchers: which of some instances serves a request, whatever its model.

use super::{Choice, instances};
use crate::workload::Template;
use routebalance_core::fleet::{Fleet, InstanceId, ModelId};
use routebalance_core::latency;
use routebalance_core::random::Random;
use routebalance_core::reckoning::LoadNow;

/// A rule by which one of some instances is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Dispatcher {
    /// Every instance in turn.
    RoundRobin,
    /// Any instance.
    Random,
    /// The fewest running and waiting requests; of equals the first (RouteBalance's baselines; PUBLISHED.md, section 12).
    ShortestQueue,
    /// Of two drawn at random the one with fewer requests (Mitzenmacher 2001, *The Power of Two Choices in Randomized Load
    /// Balancing*; Envoy's `LEAST_REQUEST`).
    PowerOfTwo,
    /// The least work left, in seconds at the instance's full batch, with a penalty for a cache that fills up ([`latency::owed_seconds`]).
    LeastLoad,
    /// The highest weighted sum of scores for the queue and the KV cache (`scorers`); of equals any.
    WeightedScorers,
}

/// How often it was whose turn, by model, and last over all of them.
#[derive(Clone, Debug, Default)]
pub struct Turns(Vec<u64>);

impl Turns {
    fn next(&mut self, which: usize) -> u64 {
        if self.0.len() <= which {
            self.0.resize(which.saturating_add(1), 0);
        }
        let Some(turn) = self.0.get_mut(which) else { return 0 };
        let now = *turn;
        *turn = turn.wrapping_add(1);
        now
    }
}

impl Dispatcher {
    /// Chooses among the instances of a model, or of all of them.
    pub(crate) fn choose(
        self,
        fleet: &Fleet,
        model: Option<ModelId>,
        template: &Template,
        loads: &[LoadNow],
        turns: &mut Turns,
        random: &mut Random,
    ) -> Option<Choice> {
        let among: Vec<InstanceId> = instances(fleet, model).collect();
        let load = |i: InstanceId| loads.get(i.index()).copied().unwrap_or_default();
        let requests = |i: InstanceId| loads.get(i.index()).map_or(0.0, LoadNow::in_flight);
        let instance = match self {
            Dispatcher::RoundRobin => {
                let turn = turns.next(model.map_or(fleet.models.len(), ModelId::index));
                *among.get((turn % among.len().max(1) as u64) as usize)?
            }
            Dispatcher::Random => *among.get(random.below(among.len()))?,
            Dispatcher::ShortestQueue => first_least(&among, requests)?,
            Dispatcher::PowerOfTwo => {
                let first = random.below(among.len());
                // The second is another one, if there is any.
                let step = random.below(among.len().saturating_sub(1)).saturating_add(1);
                let second = first.saturating_add(step) % among.len().max(1);
                first_least(&[*among.get(first)?, *among.get(second)?], requests)?
            }
            Dispatcher::LeastLoad => {
                let seconds = |i: InstanceId| {
                    fleet
                        .pool_of(i)
                        .map_or(f64::INFINITY, |(_, pool)| latency::owed_seconds(&pool.profile, &pool.limits, &load(i)))
                };
                // Idle instances are equals: the one that has waited longest for a request comes first.
                let order = |a: &InstanceId, b: &InstanceId| {
                    let (a, b) = (*a, *b);
                    seconds(a).total_cmp(&seconds(b)).then(load(a).last_dispatch.cmp(&load(b).last_dispatch))
                };
                among.iter().copied().min_by(order)?
            }
            Dispatcher::WeightedScorers => {
                let scores = scorers(&among, load);
                let best = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let winners: Vec<InstanceId> =
                    among.iter().zip(&scores).filter(|(_, score)| **score >= best).map(|(i, _)| *i).collect();
                *winners.get(random.below(winners.len()))?
            }
        };
        let (_, pool) = fleet.pool_of(instance)?;
        let estimate = template.outlook.as_ref().and_then(|o| o.estimates.get(pool.model.index()));
        let expected = estimate.map_or(0.0, |(estimate, _)| estimate.output_tokens);
        let limit = template.prompt.max_tokens.map_or(f64::INFINITY, f64::from);
        Some(Choice::alone(instance, template.prompt_tokens, expected.min(limit)))
    }
}

/// The first of those with the least of something.
fn first_least(among: &[InstanceId], of: impl Fn(InstanceId) -> f64) -> Option<InstanceId> {
    among.iter().map(|i| (*i, of(*i))).min_by(|(_, a), (_, b)| a.total_cmp(b)).map(|(i, _)| i)
}

/// Weight of the queue's score and of the cache's.
const QUEUE_WEIGHT: f64 = 2.0;
const KV_WEIGHT: f64 = 2.0;

/// The default profile of the Gateway API inference extension (llm-d's endpoint picker): the queue's score is linear from the
/// longest of these queues (0) to the shortest (1), the cache's is its free share. Its third score, for cached prefixes (weight 3), is
/// the same for all instances here: the lab's prompts share none.
fn scorers(among: &[InstanceId], load: impl Fn(InstanceId) -> LoadNow) -> Vec<f64> {
    let queues = || among.iter().map(|i| load(*i).waiting);
    let (least, most) = (queues().fold(f64::INFINITY, f64::min), queues().fold(0.0, f64::max));
    let score = |i: &InstanceId| {
        let load = load(*i);
        let queue = if most > least { (most - load.waiting) / (most - least) } else { 1.0 };
        QUEUE_WEIGHT * queue + KV_WEIGHT * (1.0 - load.kv_use.unwrap_or(0.0))
    };
    among.iter().map(score).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use routebalance_core::config::Config;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn fleet() -> Fleet {
        Config::parse(include_bytes!("../../../envoy/routebalance.json")).unwrap().fleet
    }

    fn chosen(dispatcher: Dispatcher, model: Option<usize>, loads: &[LoadNow], times: usize) -> Vec<usize> {
        let template = Template::of_counts(100, vec![100; 5], vec![0.5; 5]);
        let (mut turns, mut random) = (Turns::default(), Random::new(1));
        let fleet = fleet();
        let mut choose =
            || dispatcher.choose(&fleet, model.map(ModelId::new), &template, loads, &mut turns, &mut random);
        (0..times).map(|_| choose().unwrap().instance.index()).collect()
    }

    fn busy(running: f64, waiting: f64, tokens: f64, kv_use: f64) -> LoadNow {
        LoadNow { running, waiting, pending_output_tokens: tokens, kv_use: Some(kv_use), ..LoadNow::default() }
    }

    /// The reference fleet's first three instances are of the smallest model, the next five of the second one.
    #[test]
    fn each_rule_chooses_as_its_source_says() {
        use Dispatcher::*;
        let idle = LoadNow::default();
        let sent = |seconds| LoadNow { last_dispatch: Duration::from_secs(seconds), ..idle };
        let rows: [(&str, Dispatcher, [LoadNow; 3], &[usize]); 9] = [
            ("in turn", RoundRobin, [idle; 3], &[0, 1, 2, 0]),
            (
                "fewest requests",
                ShortestQueue,
                [busy(3.0, 0.0, 0.0, 0.0), busy(1.0, 1.0, 9.0, 0.0), busy(2.0, 1.0, 0.0, 0.0)],
                &[1, 1],
            ),
            (
                "least work, not fewest requests",
                LeastLoad,
                [busy(3.0, 0.0, 90.0, 0.1), busy(1.0, 0.0, 900.0, 0.1), busy(2.0, 0.0, 500.0, 0.1)],
                &[0],
            ),
            (
                "a cache that is nearly full",
                LeastLoad,
                [busy(3.0, 0.0, 90.0, 0.95), busy(1.0, 0.0, 900.0, 0.1), busy(2.0, 0.0, 950.0, 0.1)],
                &[1],
            ),
            ("of idle ones who waited longest", LeastLoad, [sent(3), sent(1), sent(2)], &[1]),
            (
                "the shortest queue scores 1",
                WeightedScorers,
                [busy(9.0, 4.0, 0.0, 0.5), busy(9.0, 2.0, 0.0, 0.5), busy(9.0, 3.0, 0.0, 0.5)],
                &[1],
            ),
            (
                "equal queues: the emptiest cache",
                WeightedScorers,
                [busy(1.0, 0.0, 0.0, 0.5), busy(1.0, 0.0, 0.0, 0.4), busy(9.0, 0.0, 0.0, 0.3)],
                &[2],
            ),
            (
                "half the queues' span is half a cache",
                WeightedScorers,
                [busy(1.0, 2.0, 0.0, 0.0), busy(1.0, 1.0, 0.0, 0.4), busy(1.0, 0.0, 0.0, 1.0)],
                &[1],
            ),
            (
                "never the longer of two",
                PowerOfTwo,
                [busy(1.0, 0.0, 0.0, 0.0), busy(2.0, 0.0, 0.0, 0.0), busy(9.0, 0.0, 0.0, 0.0)],
                &[],
            ),
        ];
        for (name, dispatcher, loads, expected) in rows {
            let chosen = chosen(dispatcher, Some(0), &loads, expected.len().max(200));
            assert!(chosen.starts_with(expected), "{name}: {chosen:?}");
            assert!(chosen.iter().all(|i| *i < 3), "{name}: its model's instances only");
            assert!(dispatcher != PowerOfTwo || !chosen.contains(&2), "{name}: the longest queue");
        }
    }

    #[test]
    fn lots_fall_evenly() {
        let loads = [LoadNow::default(); 14];
        for (name, dispatcher, share) in [
            ("any of all", Dispatcher::Random, 1.0 / 13.0),
            ("equal scores", Dispatcher::WeightedScorers, 1.0 / 13.0),
            ("in turn", Dispatcher::RoundRobin, 1.0 / 13.0),
        ] {
            let chosen = chosen(dispatcher, None, &loads, 13_000);
            for instance in 0..13 {
                let count = chosen.iter().filter(|i| **i == instance).count() as f64 / 13_000.0;
                assert!((count / share - 1.0).abs() < 0.15, "{name}: {instance} {count}");
            }
        }
    }
}
