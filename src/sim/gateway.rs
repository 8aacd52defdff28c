//! One gateway: the workers that Envoy runs ([`routebalance_core::worker`]) on a board in memory, and what belongs to the simulation alone.

mod batching;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use batching::Batchers;

use crate::contender::{Choice, Turns};
use crate::workload::{Arrival, Template};
use routebalance_core::affinity::{Keys, Recall};
use routebalance_core::fleet::{InstanceId, PolicyId};
use routebalance_core::health::{Event, Records};
use routebalance_core::learning::feedback::Feedback;
use routebalance_core::learning::speed::AnswerTiming;
use routebalance_core::openai::Api;
use routebalance_core::random::Random;
use routebalance_core::reckoning::{Counters, Dispatch, LoadNow, Reports};
use routebalance_core::router::{Ask, Decision, Router, Verdict};
use routebalance_core::shared::{Board, MemoryBoard};
use routebalance_core::telemetry::Load;
use routebalance_core::worker::{Fetch, Purpose, Scrape, ScrapeAnswer, Worker};

/// Requests of a gateway that wait for their decisions, one batch after the other.
#[derive(Clone, Debug, Default)]
pub(super) struct Desk {
    pub(super) waiting: VecDeque<usize>,
    /// Size and window of the batch that is being formed.
    pub(super) batch: Option<(usize, Duration)>,
    pub(super) stage: Stage,
    /// Tells the closing time of this batch from those of earlier ones.
    pub(super) batches: u64,
}

/// What a desk does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Stage {
    #[default]
    Idle,
    Collecting,
    /// Deciding so many requests.
    Busy(usize),
}

/// A VM of a gateway, for as long as it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Vm {
    /// Which of the gateway's workers it is.
    pub(super) worker: usize,
    /// Tells it from all other VMs of the gateway: what was meant for a dead one does not reach its heir.
    owner: u64,
}

/// How often a request is decided anew because another worker probes the instance that was chosen.
const CLAIM_ATTEMPTS: usize = 4;

/// One gateway.
pub struct Gateway {
    /// What a worker begins with.
    router: Router,
    board: MemoryBoard,
    /// The workers, each with the number that tells its VM from all others.
    workers: Vec<(u64, Worker)>,
    /// By worker, the requests that wait for each other.
    batchers: Vec<Batchers>,
    /// When its timers begin: those of several gateways do not go off together.
    ticks_from: Duration,
    pub(super) random: Random,
    /// Whose turn it is, of dispatchers that take turns.
    pub(super) turns: Turns,
    /// Requests that wait for their decisions.
    pub(super) desk: Desk,
}

impl Gateway {
    /// A gateway that begins at time zero.
    pub fn new(router: Router, workers: usize, ticks_from: Duration, random: Random) -> Gateway {
        let mut gateway = Gateway {
            batchers: vec![Batchers::new(&router); workers],
            router,
            board: MemoryBoard::default(),
            workers: Vec::new(),
            ticks_from,
            random,
            turns: Turns::default(),
            desk: Desk::default(),
        };
        (0..workers).for_each(|number| {
            let worker = gateway.begun(number as u64, Duration::ZERO);
            gateway.workers.push(worker);
        });
        gateway
    }

    /// A VM that begins now. `before` is the number of VMs that have.
    fn begun(&mut self, before: u64, now: Duration) -> (u64, Worker) {
        let owner = before.saturating_add(1);
        let mut worker = Worker::new(self.router.clone(), owner, now);
        worker.statistics.mute();
        worker.begin(&mut self.board, now);
        (owner, worker)
    }

    /// The process dies and starts again.
    pub(super) fn restart(&mut self, now: Duration) {
        (self.board, self.turns, self.desk) = (MemoryBoard::default(), Turns::default(), Desk::default());
        (0..self.workers.len()).for_each(|worker| self.replace_worker(worker, now));
    }

    /// A worker's VM dies without a word, and another one begins.
    pub(super) fn replace_worker(&mut self, worker: usize, now: Duration) {
        let last = self.workers.iter().map(|(owner, _)| *owner).max().unwrap_or_default();
        let heir = self.begun(last, now);
        if let Some(place) = self.workers.get_mut(worker) {
            *place = heir;
        }
    }

    /// A worker.
    pub(super) fn worker(&self, worker: usize) -> Option<&Worker> {
        self.workers.get(worker).map(|(_, worker)| worker)
    }

    /// A worker at its board.
    fn at_board(&mut self, worker: usize) -> Option<(&mut Worker, &mut MemoryBoard)> {
        let (_, worker) = self.workers.get_mut(worker)?;
        Some((worker, &mut self.board))
    }

    /// The counters of all workers together, as the first one sees them.
    pub fn counters(&self) -> Counters {
        self.worker(0).map(|worker| worker.all_counters(&self.board).into_owned()).unwrap_or_default()
    }

    /// What instances have reported, as the first worker knows it.
    pub fn reports(&self) -> Reports {
        let known = self.worker(0).and_then(|worker| worker.known_reports(&self.board));
        known.map(Arc::unwrap_or_clone).unwrap_or_default()
    }

    /// The load of every instance, as a worker sees it, and how many requests were sent before.
    pub fn loads(&self, worker: usize, now: Duration, draw: f64) -> (Vec<LoadNow>, u64) {
        let seen = self.worker(worker).map(|worker| worker.loads(&self.board, now, draw));
        seen.map(|(loads, sent)| (loads.unwrap_or_default(), sent)).unwrap_or_default()
    }

    /// A worker decides a request, as the filter does; `None` if it is not to be sent.
    pub(super) fn decide(
        &mut self,
        worker: usize,
        (template, arrival): (&Template, &Arrival),
        affinity: bool,
        now: Duration,
    ) -> Option<Choice> {
        let mut verdict = None;
        for _ in 0..=CLAIM_ATTEMPTS {
            let (load_draw, draw) = (self.random.uniform(), self.random.uniform());
            let (_, worker) = self.workers.get_mut(worker)?;
            let keys = affinity.then(|| worker.router.keys(Api::ChatCompletions, &template.prompt, None));
            let recall = keys.as_ref().map_or_else(Recall::default, |keys| {
                worker.router.recall(&worker.placements.memory, keys, &template.prompt, now)
            });
            let (loads, sequence) = worker.loads(&self.board, now, load_draw);
            let ask = Ask {
                held: recall.held(),
                sequence,
                draw,
                constraints: arrival.constraints,
                prices: worker.prices.of_policy(PolicyId::new(arrival.policy)),
                ..Ask::new(Api::ChatCompletions, &template.prompt, PolicyId::new(arrival.policy))
            };
            let (loads, learned) = (loads.as_deref(), worker.learner.learned());
            let decided = match &template.outlook {
                Some(outlook) => worker.router.decide(&ask, outlook, loads, learned),
                None => worker.router.route(&ask, loads, learned),
            };
            let Verdict::Decided(decision) = decided else { return None };
            let is_ours = !decision.to.probe || worker.claim(&mut self.board, decision.to.instance, now);
            verdict = Some((decision, keys));
            if is_ours {
                break;
            }
        }
        let (decision, keys) = verdict?;
        Some(self.chosen(worker, decision, keys.as_ref(), now))
    }

    /// Where a decided request goes; the worker remembers that it does.
    fn chosen(&mut self, worker: usize, decision: Box<Decision>, keys: Option<&Keys>, now: Duration) -> Choice {
        let placement = keys.and_then(|keys| decision.placement(keys, now));
        if let Some((placement, (worker, _))) = placement.zip(self.at_board(worker)) {
            worker.place(placement);
        }
        Choice {
            instance: decision.to.instance,
            fallbacks: decision.to.fallbacks.clone(),
            dispatch: decision.dispatch(),
            max_tokens: decision.because.max_tokens,
            decision: Some(decision),
        }
    }

    /// What the decision on a request would have drawn is not used.
    pub(super) fn skip_draws(&mut self) {
        let _ = (self.random.uniform(), self.random.uniform());
    }

    /// A worker sees something of an instance, to which a request was sent at a time.
    pub(super) fn saw(&mut self, worker: usize, instance: InstanceId, event: Event, sent: Duration, now: Duration) {
        if let Some((worker, board)) = self.at_board(worker) {
            worker.saw(board, instance, event, sent, now);
        }
    }

    /// Whether an instance answers nobody at the moment, as far as a worker knows.
    pub(super) fn is_silent(&self, worker: usize, instance: InstanceId, now: Duration) -> bool {
        self.worker(worker).is_some_and(|worker| worker.is_silent(&self.board, instance, now))
    }

    /// What a worker knows of who is stuck: reports, and what speaks against instances.
    pub(super) fn stuck(&self, worker: usize) -> Option<(Arc<Reports>, Arc<Records>)> {
        let reports = self.worker(worker)?.known_reports(&self.board).unwrap_or_default();
        Some((reports, self.board.records().0))
    }

    /// A worker reads an instance's load in the header of an answer.
    pub(super) fn glimpse(&mut self, worker: usize, answered: &Dispatch, load: &Load, now: Duration) {
        if let Some((worker, board)) = self.at_board(worker) {
            worker.glimpse(board, answered, load, now);
        }
    }

    pub(super) fn dispatch(&mut self, worker: usize, dispatch: &Dispatch, now: Duration) {
        if let Some((worker, board)) = self.at_board(worker) {
            worker.dispatch(board, dispatch, now);
        }
    }

    pub(super) fn move_to(&mut self, worker: usize, dispatch: &mut Dispatch, instance: InstanceId, now: Duration) {
        if let Some((worker, board)) = self.at_board(worker) {
            worker.move_to(board, dispatch, instance, now);
        }
    }

    pub(super) fn finish(&mut self, worker: usize, dispatch: Dispatch, now: Duration) {
        if let Some((worker, board)) = self.at_board(worker) {
            worker.finish(board, dispatch, now);
        }
    }

    /// The first token of a stream.
    pub(super) fn begin(&mut self, worker: usize, dispatch: &mut Dispatch) {
        if let Some((worker, _)) = self.at_board(worker) {
            worker.prefilled(dispatch);
            worker.streamed(dispatch, 1);
        }
    }

    /// Streams have brought more of their predicted tokens.
    pub(super) fn streamed(&mut self, worker: usize, instance: InstanceId, predicted: u64) {
        if let Some((worker, _)) = self.at_board(worker) {
            worker.streams_brought(instance, predicted);
        }
    }

    /// A worker learns from a whole answer, as the filter does.
    pub(super) fn learn(&mut self, worker: usize, decision: &Decision, timing: &AnswerTiming) {
        let Some((worker, _)) = self.at_board(worker) else { return };
        let expectation = decision.expected.expectation;
        if let Some(lesson) = expectation.and_then(|expectation| expectation.lesson(timing.output_tokens, false)) {
            worker.learner.learn_length(&lesson);
        }
        if let Some(lesson) = decision.speed_lesson(timing) {
            worker.learner.learn_speed(&lesson);
        }
    }

    /// Every worker's tick; what they ask for.
    pub(super) fn tick(&mut self, now: Duration) -> Vec<(Vm, Fetch)> {
        let mut fetches = Vec::new();
        if now < self.ticks_from {
            return fetches;
        }
        for (number, (owner, worker)) in self.workers.iter_mut().enumerate() {
            let vm = Vm { worker: number, owner: *owner };
            fetches.extend(worker.tick(&mut self.board, now).into_iter().map(|fetch| (vm, fetch)));
        }
        fetches
    }

    /// A worker hears of the hosts in Envoy's clusters.
    pub(super) fn told_hosts(&mut self, vm: Vm, clusters: &[u8], now: Duration) {
        if let Some((owner, worker)) = self.workers.get_mut(vm.worker)
            && *owner == vm.owner
        {
            worker.fetched(&mut self.board, &Purpose::Hosts, Some(200), clusters, now);
        }
    }

    /// A worker remembers a decision that its client may score.
    pub(super) fn remember(&mut self, worker: usize, index: usize, decision: &Decision) {
        if let Some((worker, board)) = self.at_board(worker) {
            worker.remember_decision(board, &index.to_string(), decision);
        }
    }

    /// A client scores an answer at this worker.
    pub(super) fn score(&mut self, worker: usize, index: usize, score: f64, now: Duration) {
        if let Some((worker, board)) = self.at_board(worker) {
            worker.score(board, &Feedback { id: index.to_string(), score }, now);
        }
    }

    /// The worker of a VM, if that lives.
    pub(super) fn vm(&mut self, vm: Vm) -> Option<&mut Worker> {
        let (_, worker) = self.workers.get_mut(vm.worker).filter(|(owner, _)| *owner == vm.owner)?;
        Some(worker)
    }

    /// This came of a scrape.
    pub(super) fn reported(&mut self, vm: Vm, scrape: &Scrape, answer: ScrapeAnswer) {
        if let Some(worker) = self.vm(vm) {
            worker.reported(scrape, answer);
        }
    }
}
