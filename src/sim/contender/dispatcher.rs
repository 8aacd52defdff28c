//! Dispatchers: which of some instances serves a request, whatever its model.

use super::{Choice, instances};
use crate::fleet::Fleet;
use crate::random::Random;
use crate::reckoning::LoadNow;
use crate::sim::workload::Template;

/// A rule by which one of some instances is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Dispatcher {
    /// Every instance in turn.
    RoundRobin,
    /// Any instance.
    Random,
    /// The fewest running and waiting requests; of equals the first (RouteBalance's baselines, section 12 of its specification).
    ShortestQueue,
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
    pub(in crate::sim) fn choose(
        self,
        fleet: &Fleet,
        model: Option<usize>,
        template: &Template,
        loads: &[LoadNow],
        turns: &mut Turns,
        random: &mut Random,
    ) -> Option<Choice> {
        let among: Vec<usize> = instances(fleet, model).collect();
        let instance = match self {
            Dispatcher::RoundRobin => {
                let turn = turns.next(model.unwrap_or(fleet.models.len()));
                *among.get((turn % among.len().max(1) as u64) as usize)?
            }
            Dispatcher::Random => *among.get(random.below(among.len()))?,
            Dispatcher::ShortestQueue => least(&among, |i| loads.get(i).map_or(0.0, LoadNow::in_flight))?,
        };
        let (_, pool) = fleet.pool_of(instance)?;
        let estimate = template.outlook.as_ref().and_then(|o| o.estimates.get(pool.model));
        let expected = estimate.map_or(0.0, |(estimate, _)| estimate.output_tokens);
        let limit = template.prompt.max_tokens.map_or(f64::INFINITY, f64::from);
        Some(Choice::of(instance, template.prompt_tokens, expected.min(limit)))
    }
}

/// The first of those with the least of something.
fn least(among: &[usize], of: impl Fn(usize) -> f64) -> Option<usize> {
    among.iter().copied().min_by(|a, b| of(*a).total_cmp(&of(*b)))
}
