//! The loop over events: clients, gateways, the network between them, instances, faults.
//!
//! A request reaches a gateway and one of its workers by lot, is decided there by [`Router::decide`] or [`Router::route`], and
//! travels to the instance. Envoy's part is played as the reference configuration has it: a refused connection, or a stream reset
//! before its first byte, is tried again at the next of the decision's endpoints. Where [`Options`] say so, the gateway has its part in
//! that, by the rules of [`routebalance_core::health`] that the filter follows. Scrapes are those that the gateway's workers ask for
//! in their ticks. The tokens of a stream are counted at ticks, so that a worker knows its own up to one tick late.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};
use std::time::Duration;

use crate::contender::Contender;
use crate::engine::{Event, EventKind, Job};
use crate::fault::{Reply, Scheduled};
use crate::gateway::{Gateway, Vm};
use crate::outcome::{End, Outcome};
use crate::server::Server;
use crate::workload::Workload;
use routebalance_core::fleet::InstanceId;
use routebalance_core::health::{self, Asking, Suspect};
use routebalance_core::random::Random;
use routebalance_core::reckoning::Dispatch;
use routebalance_core::router::Router;
use routebalance_core::worker::{Scrape, ScrapeAnswer};

mod cascading;
mod deciding;
mod judging;
mod options;
mod replies;
mod reruns;
mod upkeep;

pub use options::Options;

/// A request on its way. Every tick looks at all that run, so what ticks read lies close together.
#[derive(Clone, Debug)]
struct Flight {
    gateway: usize,
    worker: usize,
    attempt: usize,
    /// Whether the current attempt is with its instance.
    reached: bool,
    /// Taken when the request ends, so that its counters are released exactly once.
    dispatch: Option<Dispatch>,
    /// Tokens of the current attempt that were counted.
    seen: u32,
    began: bool,
    progressed_at: Duration,
    route: Box<Route>,
}

/// Where a request goes and has been, and what is asked there.
#[derive(Clone, Debug)]
struct Route {
    /// Where Envoy sends it, in order.
    targets: Vec<InstanceId>,
    /// When it was sent, as far as the gateway knows.
    sent: Duration,
    /// The instances of earlier attempts, until it is known what was wrong with them.
    failed: Vec<InstanceId>,
    /// Whether the answer comes in one piece.
    whole: bool,
    /// Who has it, by the numbers of the attempts that the gateway has made; only where it may make some.
    asking: Option<Box<Asking<usize>>>,
    suspect: Suspect,
    /// Whether the instance of the first attempt answered nobody when the second one was made.
    first_is_silent: bool,
    job: Job,
}

impl Flight {
    fn target(&self) -> Option<InstanceId> {
        let targets = &self.route.targets;
        targets.get(self.attempt.checked_rem(targets.len())?).copied()
    }
}

/// What a gateway hears of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    FirstToken,
    Finished,
    TooLong,
    NobodyThere,
    Lost,
    Replied(Reply),
}

/// A scrape on its way.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Asked {
    gateway: usize,
    vm: Vm,
    scrape: Scrape,
    /// When its time is over.
    until: Duration,
}

/// Scrapes are boxed: they are large and rare, and every sift of the queue moves events about.
#[derive(Clone, Debug, PartialEq)]
enum Happening {
    Arrive(usize),
    Close { gateway: usize, batch: u64 },
    Look { gateway: usize, worker: usize },
    Decide { gateway: usize, request: Option<usize> },
    Reach { flight: usize, attempt: usize },
    Rerun { flight: usize, attempt: usize, instance: InstanceId },
    Step { instance: InstanceId },
    Hear { flight: usize, attempt: usize, news: News },
    Abort { instance: InstanceId, job: u64 },
    Tick,
    Asked(Box<Asked>),
    Told(Box<(Asked, ScrapeAnswer)>),
    Idle { flight: usize, attempt: usize },
    Expire { flight: usize },
    Leave { flight: usize },
    Fail(usize),
}

/// An event in the queue; the number keeps events of one time in the order in which they were foreseen.
#[derive(Clone, Debug, PartialEq)]
struct Queued(Duration, u64, Happening);

impl Eq for Queued {}

impl Ord for Queued {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// Attempts of one request are told apart in the low bits of a job's id.
const ATTEMPTS: u64 = 16;

/// A fleet, its gateways and their clients in virtual time.
pub struct Simulation<'a> {
    router: &'a Router,
    contender: Contender,
    workload: &'a Workload,
    faults: &'a [Scheduled],
    options: Options,
    now: Duration,
    foreseen: u64,
    queue: BinaryHeap<Reverse<Queued>>,
    /// Attempts that will be looked at, in order of time: nearly all have ended by then, and none of them makes the queue longer.
    idles: VecDeque<Queued>,
    servers: Vec<Server>,
    /// For every server, the time of its next event in the queue.
    steps: Vec<Option<Duration>>,
    /// Which servers have a step under way, as far as their neighbours have felt it; only where GPUs are shared.
    at_work: Vec<bool>,
    gateways: Vec<Gateway>,
    /// By arrival; `None` before and after.
    flights: Vec<Option<Flight>>,
    /// By arrival, the worker that has it.
    workers: Vec<usize>,
    open: BTreeSet<usize>,
    arrived: usize,
    outcomes: Vec<Outcome>,
    random: Random,
    /// What becomes of scrapes, so that they leave all else as it is.
    scrape_random: Random,
    events: Vec<Event>,
}

impl<'a> Simulation<'a> {
    /// Everything idle at time zero, and our router decides.
    pub fn new(router: &'a Router, workload: &'a Workload, faults: &'a [Scheduled], options: Options) -> Self {
        Simulation::deciding_by(Contender::Ours, router, workload, faults, options)
    }

    /// Everything idle at time zero. Fleet and telemetry are the router's, whoever decides.
    pub fn deciding_by(
        contender: Contender,
        router: &'a Router,
        workload: &'a Workload,
        faults: &'a [Scheduled],
        options: Options,
    ) -> Self {
        let fleet = &router.config().fleet;
        let instances = fleet.instances.len();
        let gateway_router = options.router(router);
        let servers: Vec<Server> =
            fleet.instances.iter().filter_map(|instance| fleet.pool(instance.pool)).map(Server::new).collect();
        let mut scrape_random = Random::for_use(options.seed, 98);
        let gateway = |g: usize| {
            let ticks_from = router.config().telemetry.scrape_period.mul_f64(scrape_random.uniform());
            let random = Random::for_use(options.seed, 100 + g as u64);
            Gateway::new(gateway_router.clone(), options.workers, ticks_from, random)
        };
        let gateways: Vec<Gateway> = (0..options.gateways).map(gateway).collect();
        let mut simulation = Simulation {
            router,
            contender,
            workload,
            faults,
            now: Duration::ZERO,
            foreseen: 0,
            queue: BinaryHeap::new(),
            idles: VecDeque::new(),
            steps: vec![None; instances],
            at_work: vec![false; instances],
            servers,
            gateways,
            flights: vec![None; workload.arrivals.len()],
            workers: Vec::with_capacity(workload.arrivals.len()),
            open: BTreeSet::new(),
            arrived: 0,
            outcomes: Vec::with_capacity(workload.arrivals.len()),
            random: Random::for_use(options.seed, 99),
            scrape_random,
            options,
            events: Vec::new(),
        };
        simulation.foresee_all();
        simulation
    }

    /// Runs until every request has ended, or until the time limit.
    pub fn finish(&mut self, limit: Duration) {
        while self.arrived < self.workload.arrivals.len() || !self.open.is_empty() {
            if self.next_at().is_none_or(|next| next > limit) || !self.step() {
                return;
            }
        }
    }

    /// Runs until a time, that time included.
    pub fn run_until(&mut self, time: Duration) {
        while self.next_at().is_some_and(|next| next <= time) && self.step() {}
        self.now = self.now.max(time);
    }

    /// The time.
    pub fn now(&self) -> Duration {
        self.now
    }

    /// What became of the requests that have come so far, in their order.
    pub fn outcomes(&self) -> &[Outcome] {
        &self.outcomes
    }

    /// What became of all requests.
    pub fn into_outcomes(self) -> Vec<Outcome> {
        self.outcomes
    }

    /// The instances.
    pub fn servers(&self) -> &[Server] {
        &self.servers
    }

    /// The gateways.
    pub fn gateways(&self) -> &[Gateway] {
        &self.gateways
    }

    fn foresee_all(&mut self) {
        if let Some(first) = self.workload.arrivals.first() {
            self.foresee(first.at, Happening::Arrive(0));
        }
        for (i, fault) in self.faults.iter().enumerate() {
            self.foresee(fault.at, Happening::Fail(i));
        }
        self.foresee(self.options.tick, Happening::Tick);
    }

    fn foresee(&mut self, at: Duration, what: Happening) {
        self.foreseen = self.foreseen.saturating_add(1);
        self.queue.push(Reverse(Queued(at.max(self.now), self.foreseen, what)));
    }

    /// Looks at an attempt at this time, whether it is idle.
    fn foresee_idle(&mut self, at: Duration, flight: usize, attempt: usize) {
        let what = Happening::Idle { flight, attempt };
        if self.idles.back().is_some_and(|last| last.0 > at) {
            return self.foresee(at, what);
        }
        self.foreseen = self.foreseen.saturating_add(1);
        self.idles.push_back(Queued(at, self.foreseen, what));
    }

    /// When something happens next.
    fn next_at(&self) -> Option<Duration> {
        let queued = self.queue.peek().map(|next| next.0.0);
        let idle = self.idles.front().map(|next| next.0);
        queued.into_iter().chain(idle).min()
    }

    fn pop(&mut self) -> Option<Queued> {
        let idle_first = match (self.idles.front(), self.queue.peek()) {
            (Some(idle), Some(Reverse(queued))) => idle < queued,
            (idle, _) => idle.is_some(),
        };
        if idle_first { self.idles.pop_front() } else { self.queue.pop().map(|Reverse(next)| next) }
    }

    fn after_network(&mut self, what: Happening) {
        self.foresee(self.now.saturating_add(self.options.network), what);
    }

    fn step(&mut self) -> bool {
        let Some(Queued(at, _, what)) = self.pop() else { return false };
        self.now = at;
        match what {
            Happening::Arrive(arrival) => self.arrive(arrival),
            Happening::Close { gateway, batch } => self.close(gateway, batch),
            Happening::Look { gateway, worker } => self.look(gateway, worker),
            Happening::Decide { gateway, request } => self.decided(gateway, request),
            Happening::Reach { flight, attempt } => self.reach(flight, attempt),
            Happening::Rerun { flight, attempt, instance } => self.reach_by_call(flight, attempt, instance),
            Happening::Step { instance } => {
                if self.steps.get(instance.index()).copied().flatten() == Some(at) {
                    if let Some(step) = self.steps.get_mut(instance.index()) {
                        *step = None;
                    }
                    self.advance(instance);
                }
            }
            Happening::Hear { flight, attempt, news } => self.hear(flight, attempt, news),
            Happening::Abort { instance, job } => self.abort(instance, job),
            Happening::Tick => self.tick(),
            Happening::Asked(asked) => self.asked(*asked),
            Happening::Told(told) => self.told(&told.0, told.1),
            Happening::Idle { flight, attempt } => self.idle(flight, attempt),
            Happening::Expire { flight } => self.expire(flight),
            Happening::Leave { flight } => {
                self.saw(flight, health::Event::Unjudged);
                self.part(flight);
                self.end(flight, End::Left);
            }
            Happening::Fail(fault) => self.fail(fault),
        }
        true
    }

    // === requests on their way ===

    fn flight(&mut self, index: usize) -> Option<&mut Flight> {
        self.flights.get_mut(index)?.as_mut()
    }

    fn hear(&mut self, index: usize, attempt: usize, news: News) {
        let now = self.now;
        let Some(flight) = self.flights.get_mut(index).and_then(Option::as_mut).filter(|f| f.attempt == attempt) else {
            return self.hear_of_rerun(index, attempt, news);
        };
        match news {
            News::FirstToken if flight.route.whole => {}
            News::FirstToken => {
                let target = flight.target();
                flight.began = true;
                flight.progressed_at = now;
                if let (Some(gateway), Some(dispatch), Some(target)) =
                    (self.gateways.get_mut(flight.gateway), flight.dispatch.as_mut(), target)
                {
                    if target != dispatch.instance {
                        gateway.move_to(flight.worker, dispatch, target, now);
                    }
                    if flight.seen == 0 {
                        gateway.begin(flight.worker, dispatch);
                        flight.seen = 1;
                    }
                }
                if let Some(outcome) = self.outcomes.get_mut(index) {
                    outcome.ttft = Some(now.saturating_sub(outcome.at));
                }
                self.saw(index, health::Event::Began);
            }
            News::Finished => {
                if flight.route.whole {
                    self.saw(index, health::Event::Began);
                }
                self.saw(index, health::Event::Succeeded);
                self.glimpse(index);
                if self.is_turned_down(index) { self.send_on(index) } else { self.end(index, End::Answered) }
            }
            News::TooLong => {
                self.saw(index, health::Event::Refused { common: true });
                self.end(index, End::Refused);
            }
            News::NobodyThere | News::Lost => self.lose(index, news),
            News::Replied(reply) => self.replied(index, reply),
        }
    }

    /// The current attempt has failed.
    fn lose(&mut self, index: usize, news: News) {
        let config = self.router.config();
        let most = self.options.retries.unwrap_or_else(|| config.retries());
        let (back_off, per_try_idle) = (self.options.retry_back_off, self.per_try_idle());
        let Some(flight) = self.flight(index) else { return };
        if flight.began {
            self.saw(index, judging::of_loss(news, true));
            return self.end(index, End::Cut);
        }
        let is_suspect = self.is_suspect(index, news);
        let Some(flight) = self.flights.get_mut(index).and_then(Option::as_mut) else { return };
        // The gateway allows no attempts beyond the endpoints that it names.
        let retries =
            if self.options.sees_attempts { most.min(flight.route.targets.len().saturating_sub(1)) } else { most };
        if flight.attempt >= retries || is_suspect {
            self.saw(index, judging::of_loss(news, false));
            let end = self.end_of_loss(index, news, is_suspect);
            return self.end(index, end);
        }
        let failed = flight.target();
        flight.route.failed.extend(failed);
        flight.attempt = flight.attempt.saturating_add(1);
        flight.reached = false;
        flight.seen = 0;
        let (attempt, target) = (flight.attempt, flight.target());
        self.ask_model_of(index, target);
        self.see_attempt(index);
        let now = self.now;
        let Some(flight) = self.flight(index) else { return };
        flight.progressed_at = now.saturating_add(back_off);
        let is_whole = flight.route.whole;
        self.foresee(now.saturating_add(back_off + self.options.network), Happening::Reach { flight: index, attempt });
        if !is_whole {
            self.foresee_idle(now.saturating_add(back_off + per_try_idle), index, attempt);
        }
    }

    fn per_try_idle(&self) -> Duration {
        self.options.per_try_idle.unwrap_or(self.router.config().envoy.per_try_idle_timeout)
    }

    fn idle(&mut self, index: usize, attempt: usize) {
        let (now, limit) = (self.now, self.per_try_idle());
        let Some(flight) = self.flight(index).filter(|f| f.attempt == attempt) else { return };
        let due = flight.progressed_at.saturating_add(limit);
        if due > now {
            return self.foresee_idle(due, index, attempt);
        }
        self.withdraw(index);
        self.lose(index, News::Lost);
    }

    /// Tells the instance of the current attempt that nobody listens any more.
    fn withdraw(&mut self, index: usize) {
        let Some(flight) = self.flight(index) else { return };
        if let Some(instance) = flight.target() {
            let job = job_id(index, flight.attempt);
            self.after_network(Happening::Abort { instance, job });
        }
    }

    /// The request is over, however: releases what it still holds, once.
    fn end(&mut self, index: usize, end: End) {
        if !matches!(end, End::Answered | End::Refused) {
            self.withdraw(index);
        }
        if !self.open.remove(&index) {
            return;
        }
        let Some(mut flight) = self.flights.get_mut(index).and_then(Option::take) else {
            // It has not been decided.
            if let Some(outcome) = self.outcomes.get_mut(index) {
                outcome.end = end;
                outcome.e2e = Some(self.now.saturating_sub(outcome.at));
            }
            return;
        };
        if let Some(gateway) = self.gateways.get_mut(flight.gateway)
            && let Some(dispatch) = flight.dispatch.take()
            // What a dead worker has counted stays until its slot is found out.
            && end != End::GatewayDied
        {
            gateway.finish(flight.worker, dispatch, self.now);
        }
        if let Some(outcome) = self.outcomes.get_mut(index) {
            outcome.end = end;
            outcome.attempts = outcome.attempts.saturating_add(flight.attempt).saturating_add(1);
            outcome.instance = flight.target();
            outcome.e2e = Some(self.now.saturating_sub(outcome.at));
        }
        self.learn(index, flight.gateway, flight.worker);
    }

    // === instances ===

    fn reach(&mut self, index: usize, attempt: usize) {
        let Some(flight) = self.flight(index).filter(|f| f.attempt == attempt) else { return };
        let Some(instance) = flight.target() else { return };
        let job = Job { id: job_id(index, attempt), ..flight.route.job };
        flight.reached = true;
        self.deliver((index, attempt), instance, job);
    }

    /// A request is at an instance.
    fn deliver(&mut self, (index, attempt): (usize, usize), instance: InstanceId, job: Job) {
        self.advance(instance);
        if let Some(reply) = self.reply(index, instance) {
            return self.after_network(Happening::Hear { flight: index, attempt, news: News::Replied(reply) });
        }
        let now = self.now;
        let template = self.outcomes.get(index).and_then(|o| self.workload.templates.get(o.template));
        let blocks = template.map_or(&[][..], |template| &template.blocks);
        let Some(server) = self.servers.get_mut(instance.index()) else { return };
        match server.submit(now, job, blocks) {
            Ok(Ok(())) => self.plan_step(instance),
            Ok(Err(_)) => self.after_network(Happening::Hear { flight: index, attempt, news: News::TooLong }),
            Err(_) => self.after_network(Happening::Hear { flight: index, attempt, news: News::NobodyThere }),
        }
    }

    fn abort(&mut self, instance: InstanceId, job: u64) {
        self.advance(instance);
        if let Some(server) = self.servers.get_mut(instance.index()) {
            server.cancel(job);
        }
        self.plan_step(instance);
    }

    /// Lets an instance do what it does by now, and tells the gateways.
    fn advance(&mut self, instance: InstanceId) {
        let mut events = std::mem::take(&mut self.events);
        events.clear();
        if let Some(server) = self.servers.get_mut(instance.index()) {
            server.advance_into(self.now, &mut events);
        }
        for event in &events {
            let news = match event.kind {
                EventKind::FirstToken => News::FirstToken,
                EventKind::Finished(_) => News::Finished,
                EventKind::Started | EventKind::CacheHit(_) | EventKind::Token | EventKind::Preempted => continue,
            };
            let (flight, attempt) = flight_of(event.id);
            self.foresee(event.at.saturating_add(self.options.network), Happening::Hear { flight, attempt, news });
        }
        self.events = events;
        self.plan_step(instance);
        self.felt_by_neighbours(instance);
    }

    /// Whoever shares GPUs with an instance that has begun or ceased to work is slowed down, or no more.
    fn felt_by_neighbours(&mut self, instance: InstanceId) {
        let Some(sharing) = self.options.sharing.clone() else { return };
        let works = self.servers.get(instance.index()).is_some_and(Server::is_at_work);
        let Some(felt) = self.at_work.get_mut(instance.index()).filter(|felt| **felt != works) else { return };
        *felt = works;
        for neighbour in sharing.neighbours(instance) {
            // Its steps until now began before; it may cease or begin to work by it, and then tells this one.
            self.advance(*neighbour);
            self.slow_down(*neighbour);
        }
    }

    /// Slows an instance down as its neighbours do now.
    fn slow_down(&mut self, instance: InstanceId) {
        let Some(sharing) = &self.options.sharing else { return };
        let factor = sharing.slow_down(instance, &self.at_work);
        if let Some(server) = self.servers.get_mut(instance.index()) {
            server.set_slow_down(factor);
        }
        self.plan_step(instance);
    }

    fn plan_step(&mut self, instance: InstanceId) {
        let next = self.servers.get(instance.index()).and_then(Server::next_event);
        let Some(planned) = self.steps.get_mut(instance.index()) else { return };
        if let Some(next) = next
            && planned.is_none_or(|at| next < at)
        {
            *planned = Some(next.max(self.now));
            let at = next.max(self.now);
            self.foresee(at, Happening::Step { instance });
        }
    }

    // === ticks and scrapes ===
}

fn job_id(flight: usize, attempt: usize) -> u64 {
    (flight as u64).saturating_mul(ATTEMPTS).saturating_add(attempt as u64 % ATTEMPTS)
}

fn flight_of(job: u64) -> (usize, usize) {
    ((job / ATTEMPTS) as usize, (job % ATTEMPTS) as usize)
}

#[cfg(test)]
mod tests;
