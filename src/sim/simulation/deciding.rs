//! Requests at the gateway: from their arrival to their dispatch.

use std::time::Duration;

use super::{Flight, Happening, Route, Simulation};
use crate::contender::{Choice, Contender, Deciding, Dispatcher, Published};
use crate::engine::Job;
use crate::gateway::{Gateway, Stage};
use crate::outcome::{End, Outcome};
use crate::server::Server;
use crate::workload::{Arrival, Template, Workload};
use routebalance_core::assign;
use routebalance_core::fleet::{BatchSizing, Batching, Constraints, Fleet, InstanceId, ModelId};
use routebalance_core::gateway::LOOK;
use routebalance_core::health::{Asking, Suspect};
use routebalance_core::reckoning::LoadNow;

impl Simulation<'_> {
    /// The load of every instance now, as a gateway's first worker sees it.
    pub fn loads(&self, gateway: usize) -> Vec<LoadNow> {
        self.gateways.get(gateway).map(|home| home.loads(0, self.now, 0.5).0).unwrap_or_default()
    }

    pub(super) fn arrive(&mut self, index: usize) {
        self.arrived = index.saturating_add(1);
        if let Some(next) = self.workload.arrivals.get(self.arrived) {
            self.foresee(next.at, Happening::Arrive(self.arrived));
        }
        let Some(arrival) = self.workload.arrivals.get(index).copied() else { return };
        let gateway = self.random.below(self.gateways.len());
        let worker = self.random.below(self.options.workers);
        self.outcomes.push(Outcome {
            template: arrival.template,
            gateway,
            at: self.now,
            decided: None,
            model: None,
            decision: None,
            instance: None,
            attempts: 0,
            reruns: 0,
            turned_down: Vec::new(),
            ttft: None,
            e2e: None,
            output_tokens: 0,
            end: End::Open,
        });
        self.workers.push(worker);
        if arrival.manner.absent {
            return self.miss(index, gateway);
        }
        self.open.insert(index);
        if let Some(patience) = arrival.patience {
            self.foresee(self.now.saturating_add(patience), Happening::Leave { flight: index });
        }
        match self.options.deciding {
            deciding if deciding.is_immediate() => {
                if self.joins(gateway, worker, index) {
                    self.send_batches(gateway, worker);
                } else {
                    self.decide(gateway, &[index]);
                }
            }
            Deciding::Concurrently(time) => {
                self.foresee(self.now.saturating_add(time), Happening::Decide { gateway, request: Some(index) });
            }
            Deciding::Serially(_) | Deciding::InBatches { .. } => {
                if let Some(home) = self.gateways.get_mut(gateway) {
                    home.desk.waiting.push_back(index);
                }
                self.collect(gateway);
            }
        }
    }

    /// A request does not come, and what its decision would have drawn is drawn.
    fn miss(&mut self, index: usize, gateway: usize) {
        if let Some(home) = self.gateways.get_mut(gateway) {
            home.skip_draws();
        }
        if let Some(outcome) = self.outcomes.get_mut(index) {
            outcome.end = End::Left;
        }
    }

    /// Forms a batch, unless one is being decided.
    fn collect(&mut self, gateway: usize) {
        let (batching, time) = match self.options.deciding {
            Deciding::Concurrently(_) => return,
            Deciding::Serially(time) => (one_by_one(), time),
            Deciding::InBatches { time, batching } => (batching, time),
        };
        let now = self.now;
        let Some(home) = self.gateways.get_mut(gateway) else { return };
        let desk = &mut home.desk;
        let (size, window) = *desk.batch.get_or_insert_with(|| assign::first_batch(&batching));
        if matches!(desk.stage, Stage::Busy(_)) || desk.waiting.is_empty() {
            return;
        }
        if desk.waiting.len() >= size {
            let taken = size.min(desk.waiting.len());
            desk.stage = Stage::Busy(taken);
            desk.batches = desk.batches.saturating_add(1);
            return self.foresee(now.saturating_add(time), Happening::Decide { gateway, request: None });
        }
        if desk.stage == Stage::Idle {
            desk.stage = Stage::Collecting;
            desk.batches = desk.batches.saturating_add(1);
            let batch = desk.batches;
            self.foresee(now.saturating_add(window), Happening::Close { gateway, batch });
        }
    }

    /// The window of a batch is over.
    pub(super) fn close(&mut self, gateway: usize, batch: u64) {
        let (Deciding::Serially(time) | Deciding::InBatches { time, .. }) = self.options.deciding else { return };
        let Some(home) = self.gateways.get_mut(gateway) else { return };
        let desk = &mut home.desk;
        if desk.stage == Stage::Collecting && desk.batches == batch {
            desk.stage = Stage::Busy(desk.waiting.len());
            self.foresee(self.now.saturating_add(time), Happening::Decide { gateway, request: None });
        }
    }

    /// The time for a decision is over: one request's, or that of the gateway's batch.
    pub(super) fn decided(&mut self, gateway: usize, request: Option<usize>) {
        if let Some(index) = request {
            return self.decide(gateway, &[index]);
        }
        let Some(home) = self.gateways.get_mut(gateway) else { return };
        let desk = &mut home.desk;
        let Stage::Busy(taken) = std::mem::take(&mut desk.stage) else { return };
        let batch: Vec<usize> = desk.waiting.drain(..taken.min(desk.waiting.len())).collect();
        if let Deciding::InBatches { batching, .. } = self.options.deciding {
            let share = assign::queueing_share(&self.loads(gateway));
            if let Some(last) = self.gateways.get_mut(gateway).and_then(|home| home.desk.batch.as_mut()) {
                *last = assign::next_batch(&batching, share, *last);
            }
        }
        self.decide(gateway, &batch);
        self.collect(gateway);
    }

    /// Whether a request waits for others from now on.
    fn joins(&mut self, gateway: usize, worker: usize, index: usize) -> bool {
        if !self.options.batches || !matches!(self.contender, Contender::Ours) {
            return false;
        }
        let (workload, now) = (self.workload, self.now);
        let asked = workload.arrivals.get(index).and_then(|a| Some((workload.templates.get(a.template)?, a)));
        asked.zip(self.gateways.get_mut(gateway)).is_some_and(|(asked, home)| home.join(worker, index, asked, now))
    }

    /// A worker looks whether a batch is due.
    pub(super) fn look(&mut self, gateway: usize, worker: usize) {
        if let Some(home) = self.gateways.get_mut(gateway) {
            home.looks(worker);
        }
        self.send_batches(gateway, worker);
    }

    /// Decides and sends all batches of a worker that are due; where somebody still waits, there is another look.
    fn send_batches(&mut self, gateway: usize, worker: usize) {
        let (workload, now, affinity) = (self.workload, self.now, self.options.affinity);
        let asked = |index: usize| {
            let arrival = workload.arrivals.get(index)?;
            Some((workload.templates.get(arrival.template)?, arrival))
        };
        while let Some(batch) =
            self.gateways.get_mut(gateway).and_then(|home| home.next_batch(worker, asked, affinity, now))
        {
            for (index, choice) in batch {
                match choice {
                    Some(choice) => self.send(gateway, index, choice),
                    None => self.end(index, End::Refused),
                }
            }
        }
        if self.gateways.get_mut(gateway).is_some_and(|home| home.wants_look(worker)) {
            // Workers look at the same times, whoever waits.
            let since = now.as_nanos().checked_rem(LOOK.as_nanos()).unwrap_or_default();
            let next = now.saturating_add(LOOK).saturating_sub(Duration::from_nanos(since as u64));
            self.foresee(next, Happening::Look { gateway, worker });
        }
    }

    /// A request that may still wait has gone.
    pub(super) fn part(&mut self, index: usize) {
        let worker = self.workers.get(index).copied().unwrap_or_default();
        let gateway = self.outcomes.get(index).map(|outcome| outcome.gateway);
        if let Some(home) = gateway.and_then(|gateway| self.gateways.get_mut(gateway)) {
            home.part(worker, index);
        }
    }

    /// Decides requests together, and sends them.
    fn decide(&mut self, gateway: usize, requests: &[usize]) {
        // Some may have left while they waited.
        let open: Vec<usize> = requests.iter().copied().filter(|i| self.open.contains(i)).collect();
        for (index, choice) in self.choices(gateway, &open) {
            match choice {
                Some(choice) => self.send(gateway, index, choice),
                None => self.end(index, End::Refused),
            }
        }
    }

    fn choices(&mut self, gateway: usize, requests: &[usize]) -> Vec<(usize, Option<Choice>)> {
        let fleet = &self.router.config().fleet;
        let (workload, now, affinity) = (self.workload, self.now, self.options.affinity);
        let asking = Together { fleet, workload, workers: &self.workers, now };
        let Some(home) = self.gateways.get_mut(gateway) else { return Vec::new() };
        match &self.contender {
            Contender::Ours => {
                let mut choice =
                    |index: &usize| home.decide(asking.worker(*index), asking.asked(*index)?, affinity, now);
                requests.iter().map(|index| (*index, choice(index))).collect()
            }
            Contender::Published(published) => asking.published(published, home, requests),
            Contender::Pipeline { models, dispatcher } => {
                let model = |_, arrival: &Arrival| match models {
                    Some(models) => Some(Some(*models.get(arrival.template)?)),
                    None => Some(None),
                };
                asking.dispatched(*dispatcher, model, home, requests)
            }
            Contender::Cascade(cascade) => {
                let outcomes = &self.outcomes;
                let model =
                    |index: usize, _: &Arrival| Some(Some(cascade.model(outcomes.get(index)?.turned_down.len())?));
                asking.dispatched(cascade.dispatcher, model, home, requests)
            }
        }
    }

    fn send(&mut self, gateway: usize, index: usize, choice: Choice) {
        let now = self.now;
        let fleet = &self.router.config().fleet;
        let model = fleet.pool_of(choice.instance).map(|(_, pool)| pool.model);
        let Some(outcome) = self.outcomes.get_mut(index) else { return };
        let Some(template) = self.workload.templates.get(outcome.template) else { return };
        let output_tokens = model.and_then(|m| template.output_tokens.get(m.index())).copied().unwrap_or_default();
        let max_tokens = template.prompt.max_tokens.unwrap_or(u32::MAX).min(choice.max_tokens.unwrap_or(u32::MAX));
        outcome.output_tokens = output_tokens.min(max_tokens);
        // A cascade has decided once; its judge only sends the request on.
        outcome.decided = outcome.decided.or(Some(now.saturating_sub(outcome.at)));
        outcome.model = model;
        outcome.instance = Some(choice.instance);
        let Some(home) = self.gateways.get_mut(gateway) else { return };
        let worker = self.workers.get(index).copied().unwrap_or_default();
        let manner = self.workload.arrivals.get(index).map(|arrival| arrival.manner).unwrap_or_default();
        let asking = (manner.whole && self.options.reruns && !choice.fallbacks.is_empty())
            .then(|| Box::new(Asking::new(choice.instance, now, &choice.fallbacks)));
        home.dispatch(worker, &choice.dispatch, now);
        if let Some(decision) = choice.decision.as_ref().filter(|_| self.options.feedback) {
            home.remember(worker, index, decision);
        }
        let named: Vec<InstanceId> = std::iter::once(choice.instance).chain(choice.fallbacks).collect();
        let is_listed = |i: &InstanceId| self.servers.get(i.index()).is_none_or(Server::is_listed);
        // Envoy skips endpoints that its cluster does not have.
        let listed: Vec<InstanceId> = named.iter().copied().filter(is_listed).collect();
        let route = Route {
            targets: if listed.is_empty() { named } else { listed },
            sent: now,
            failed: Vec::new(),
            whole: manner.whole,
            asking,
            suspect: Suspect::default(),
            first_is_silent: false,
            job: Job { id: 0, prompt_tokens: template.prompt_tokens, output_tokens, max_tokens },
        };
        let flight = Flight {
            gateway,
            worker,
            attempt: 0,
            reached: false,
            dispatch: Some(choice.dispatch),
            seen: 0,
            began: false,
            progressed_at: now,
            route: Box::new(route),
        };
        outcome.decision = choice.decision;
        let limit = outcome.decision.as_ref().filter(|_| manner.whole);
        let limit = limit.and_then(|decision| decision.answer_limit(self.router.config().health.answer_limit, false));
        if let Some(place) = self.flights.get_mut(index) {
            *place = Some(flight);
        }
        if manner.whole {
            limit
                .into_iter()
                .for_each(|limit| self.foresee(now.saturating_add(limit), Happening::Expire { flight: index }));
        } else {
            self.foresee_idle(now.saturating_add(self.per_try_idle()), index, 0);
        }
        self.after_network(Happening::Reach { flight: index, attempt: 0 });
    }

    /// An attempt goes to this instance: where it serves another model, the answer is as long as that one makes it.
    pub(super) fn ask_model_of(&mut self, index: usize, target: Option<InstanceId>) {
        let fleet = &self.router.config().fleet;
        let model = target.and_then(|i| fleet.pool_of(i)).map(|(_, pool)| pool.model);
        let (Some(outcome), Some(Some(flight))) = (self.outcomes.get_mut(index), self.flights.get_mut(index)) else {
            return;
        };
        if model == outcome.model {
            return;
        }
        let template = self.workload.templates.get(outcome.template);
        let Some(output_tokens) = template.zip(model).and_then(|(t, m)| t.output_tokens.get(m.index())) else { return };
        outcome.model = model;
        outcome.output_tokens = (*output_tokens).min(flight.route.job.max_tokens);
        flight.route.job.output_tokens = *output_tokens;
    }

    /// Requests of a gateway that wait for their decisions, or for their judge's.
    pub(super) fn undecided(&self, gateway: usize) -> Vec<usize> {
        let is_with_gateway = |i: usize| self.flights.get(i).is_some_and(Option::is_none);
        let waits = |i: &&usize| is_with_gateway(**i) && self.outcomes.get(**i).is_some_and(|o| o.gateway == gateway);
        self.open.iter().filter(waits).copied().collect()
    }
}

/// What is known of requests that are decided together.
struct Together<'s> {
    fleet: &'s Fleet,
    workload: &'s Workload,
    /// Of every request.
    workers: &'s [usize],
    now: Duration,
}

impl<'s> Together<'s> {
    fn worker(&self, index: usize) -> usize {
        self.workers.get(index).copied().unwrap_or_default()
    }

    fn asked(&self, index: usize) -> Option<(&'s Template, &'s Arrival)> {
        let arrival = self.workload.arrivals.get(index)?;
        Some((self.workload.templates.get(arrival.template)?, arrival))
    }

    fn published(&self, published: &Published, home: &mut Gateway, requests: &[usize]) -> Vec<(usize, Option<Choice>)> {
        let asked = requests.iter().filter_map(|index| self.asked(*index));
        let batch: Vec<(&Template, Option<Constraints>)> =
            asked.map(|(template, arrival)| (template, arrival.constraints)).collect();
        let draw = home.random.uniform();
        let (mut loads, _) = home.loads(requests.first().map_or(0, |index| self.worker(*index)), self.now, draw);
        let assigned = published.assign(self.fleet, &batch, &mut loads, self.now);
        assigned.into_iter().filter_map(|(i, choice)| Some((*requests.get(i)?, choice))).collect()
    }

    /// One after the other; `model` says which model's instances a request may go to, `Some(None)` for all, `None` if it goes nowhere.
    fn dispatched(
        &self,
        dispatcher: Dispatcher,
        model: impl Fn(usize, &Arrival) -> Option<Option<ModelId>>,
        home: &mut Gateway,
        requests: &[usize],
    ) -> Vec<(usize, Option<Choice>)> {
        let mut choices = Vec::with_capacity(requests.len());
        for index in requests {
            let draw = home.random.uniform();
            let (loads, _) = home.loads(self.worker(*index), self.now, draw);
            let asked = self.asked(*index).and_then(|(template, arrival)| Some((template, model(*index, arrival)?)));
            let choice = asked.and_then(|(template, model)| {
                dispatcher.choose(self.fleet, model, template, &loads, &mut home.turns, &mut home.random)
            });
            choices.push((*index, choice));
        }
        choices
    }
}

fn one_by_one() -> Batching {
    Batching { sizing: BatchSizing::Fixed { size: 1, window: Duration::ZERO }, max_wait: Duration::ZERO }
}
