//! Requests that wait for each other where their policy batches, as [`routebalance_core::gateway`] makes them: at the worker that has them, until a
//! batch is due at an arrival or at a look.

use std::time::Duration;

use super::Gateway;
use crate::contender::Choice;
use crate::workload::{Arrival, Template};
use routebalance_core::affinity::{Keys, Recall};
use routebalance_core::assign::{self, Assigned, Batcher};
use routebalance_core::fleet::PolicyId;
use routebalance_core::gateway::LOOK;
use routebalance_core::openai::Api;
use routebalance_core::router::{Ask, Outlook, Router, Verdict};

/// The requests of one worker that wait.
#[derive(Clone, Debug)]
pub(super) struct Batchers {
    /// By policy; `None` where it does not batch.
    of: Vec<Option<Batcher<()>>>,
    /// Whether a look is foreseen.
    looks: bool,
}

impl Batchers {
    pub(super) fn new(router: &Router) -> Batchers {
        let of = router.config().policies.iter().map(|policy| policy.batching.map(Batcher::new)).collect();
        Batchers { of, looks: false }
    }
}

/// A request of a batch before it is decided.
struct Asked<'t> {
    index: usize,
    template: &'t Template,
    arrival: &'t Arrival,
    outlook: Outlook,
    keys: Option<Keys>,
    recall: Recall,
    draw: f64,
}

impl Gateway {
    /// Lets a request wait at a worker, if it is one that waits.
    pub(crate) fn join(
        &mut self,
        worker: usize,
        index: usize,
        (template, arrival): (&Template, &Arrival),
        now: Duration,
    ) -> bool {
        let ask = Ask::new(Api::ChatCompletions, &template.prompt, PolicyId::new(arrival.policy));
        let waits = assign::outlook(&self.router, &ask).is_some();
        let batcher = self.batchers.get_mut(worker).and_then(|batchers| batchers.of.get_mut(arrival.policy));
        let (Some(Some(batcher)), true, Ok(id)) = (batcher, waits, u32::try_from(index)) else { return false };
        batcher.push(id, now, ());
        true
    }

    /// A request does not wait any more: its client has gone.
    pub(crate) fn part(&mut self, worker: usize, index: usize) {
        let (Some(batchers), Ok(id)) = (self.batchers.get_mut(worker), u32::try_from(index)) else { return };
        for batcher in batchers.of.iter_mut().flatten() {
            batcher.remove(id);
        }
    }

    /// Whether a look at a worker's batches is to be foreseen: somebody waits, and none is.
    pub(crate) fn wants_look(&mut self, worker: usize) -> bool {
        let Some(batchers) = self.batchers.get_mut(worker) else { return false };
        let waits = batchers.of.iter().flatten().any(|batcher| !batcher.is_empty());
        let wants = waits && !batchers.looks;
        batchers.looks |= waits;
        wants
    }

    /// The look that was foreseen is now.
    pub(crate) fn looks(&mut self, worker: usize) {
        if let Some(batchers) = self.batchers.get_mut(worker) {
            batchers.looks = false;
        }
    }

    /// All requests that wait at a worker wait no more, and are given back.
    pub(crate) fn disband(&mut self, worker: usize) -> Vec<usize> {
        let Some(batchers) = self.batchers.get_mut(worker) else { return Vec::new() };
        let old = std::mem::replace(&mut batchers.of, Batchers::new(&self.router).of);
        old.into_iter().flatten().flat_map(Batcher::into_waiting).map(|waiting| waiting.id as usize).collect()
    }

    /// Decides the next batch of a worker that is due, in the order in which it is sent.
    pub(crate) fn next_batch<'t>(
        &mut self,
        worker: usize,
        request: impl Fn(usize) -> Option<(&'t Template, &'t Arrival)>,
        affinity: bool,
        now: Duration,
    ) -> Option<Vec<(usize, Option<Choice>)>> {
        let workers = self.worker(worker)?.serving_workers();
        let is_due = |batcher: &&mut Batcher<()>| batcher.due(now, now.saturating_add(LOOK), workers);
        let batcher = self.batchers.get_mut(worker)?.of.iter_mut().flatten().find(is_due)?;
        let taken: Vec<usize> = batcher.take(workers).into_iter().map(|waiting| waiting.id as usize).collect();
        let load_draw = self.random.uniform();
        let (loads, sequence) = self.workers.get(worker)?.1.loads(&self.board, now, load_draw);
        if let Some(loads) = &loads {
            batcher.adapt(assign::queueing_share(loads));
        }
        let mut batch = Vec::with_capacity(taken.len());
        for index in taken {
            let draw = self.random.uniform();
            batch.extend(request(index).and_then(|of| self.asked(worker, (index, of), affinity, draw, now)));
        }
        let vm = &self.workers.get(worker)?.1;
        let ask = |asked: &Asked<'t>| Ask {
            sequence,
            draw: asked.draw,
            constraints: asked.arrival.constraints,
            ..Ask::new(Api::ChatCompletions, &asked.template.prompt, PolicyId::new(asked.arrival.policy))
        };
        let asks = batch.iter().map(|asked| {
            let prices = vm.prices.of_policy(PolicyId::new(asked.arrival.policy));
            (Ask { held: asked.recall.held(), prices, ..ask(asked) }, &asked.outlook)
        });
        let assigned = assign::assign(&vm.router, asks.collect(), loads, vm.learner.learned(), now);
        let decided = assigned.into_iter().filter_map(|Assigned { request, verdict }| {
            let asked = batch.get(request)?;
            let Verdict::Decided(decision) = verdict else { return Some((asked.index, None)) };
            let is_ours = !decision.to.probe
                || self.at_board(worker).is_some_and(|(vm, board)| vm.claim(board, decision.to.instance, now));
            let choice = match is_ours {
                true => Some(self.chosen(worker, decision, asked.keys.as_ref(), now)),
                false => self.decide(worker, (asked.template, asked.arrival), affinity, now),
            };
            Some((asked.index, choice))
        });
        Some(decided.collect())
    }

    /// What is to be known of a request before its batch is decided.
    fn asked<'t>(
        &self,
        worker: usize,
        (index, (template, arrival)): (usize, (&'t Template, &'t Arrival)),
        affinity: bool,
        draw: f64,
        now: Duration,
    ) -> Option<Asked<'t>> {
        let vm = self.worker(worker)?;
        let ask = Ask::new(Api::ChatCompletions, &template.prompt, PolicyId::new(arrival.policy));
        let outlook = template.outlook.clone().or_else(|| assign::outlook(&vm.router, &ask))?;
        let keys = affinity.then(|| vm.router.keys(Api::ChatCompletions, &template.prompt, None));
        let recall = keys
            .as_ref()
            .map_or_else(Recall::default, |keys| vm.router.recall(&vm.placements.memory, keys, &template.prompt, now));
        Some(Asked { index, template, arrival, outlook, keys, recall, draw })
    }
}
