//! Clients and instances that misbehave, one kind in each scenario, and what nobody else may notice of it.
//!
//! A scenario runs twice: with what misbehaves, and without (the client's requests do not come, the instances do nothing wrong).
//! Both runs have the same requests of all other clients at the same times, at the same gateways and workers, with the same draws
//! (common random numbers). What the other clients must not notice is said of the first run where it can be said of each request, and of
//! the difference between the two where it cannot:
//!
//! - **Nobody else's request fails.** Each is answered; where instances themselves refuse, only those that they may refuse are not.
//! - **Nobody else's request is moved.** It is sent once, it is not asked for again elsewhere, and it gets the model that it names. Which
//!   instance of several equal ones it gets is not compared: a single request more on its way makes the router choose another one for the
//!   next, and so all that follow. What is compared is how many requests of other clients each instance that works gets
//!   (`checks::moved`): an instance that is avoided for no reason loses far more than luck explains. Long answers run once, since all
//!   that is said of them is said of each.
//! - **Nobody who works is ejected.** Looked at every `LOOK`, which is shorter than any ejection.
//! - **Nothing leaks**, as in all scenarios.

mod checks;

use std::time::Duration;

use super::{LIMIT, check_leaks, small};
use crate::fault::{Answering, Fault, Reply, Reporting, Scheduled};
use crate::outcome::Outcome;
use crate::simulation::{Options, Simulation};
use crate::workload::{Arrival, Arrivals, ChatMix, Manner, Template, Workload, sustainable_rates};
use routebalance_core::config::Config;
use routebalance_core::fleet::InstanceId;
use routebalance_core::openai::Prompt;
use routebalance_core::random::Random;
use routebalance_core::reckoning::Standing;
use routebalance_core::router::Router;
use routebalance_core::shared::SLOT_TTL;

/// How long requests come, and how long those for long answers do.
const LENGTH: Duration = Duration::from_secs(60);
const LENGTH_OF_LONG: Duration = Duration::from_secs(180);
/// Instances of each pool.
const INSTANCES: usize = 3;
/// Kinds of requests, before it is said which model they name.
const TEMPLATES: usize = 100;
/// Time between two looks at how instances stand.
const LOOK: Duration = Duration::from_millis(250);
/// The client that misbehaves, or whose key is limited; all others have other numbers.
const CULPRIT: u32 = 0;
/// Clients that do not.
const OTHERS: usize = 4;

/// What misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A client whose requests fail wherever they are sent: 500 or 502, a connection that breaks off, an error event in a stream. They
    /// break nothing but themselves: a request that kills its instance takes other clients' answers with it, whatever a gateway does.
    /// Enough others come that every gateway sees every instance answer: one that gives no good answer for `health.max_ejection_ms` is
    /// ejected, whoever is to blame.
    Poison,
    /// Instances that answer 503 or 429 where too many requests wait, as vLLM does with `--max-num-queued-reqs`.
    Full,
    /// An instance that answers 400, 401, 403, 404 or an empty 200 to everybody, at once.
    BlackHole,
    /// A pool that answers 429 to everybody.
    LimitedPool,
    /// An instance that answers 429 to one client, which asks less often than once a second: two such answers within a second, and fewer good
    /// ones, are what a full instance gives, and close it for everybody for as long as they say.
    LimitedKey,
    /// Whole answers of minutes, at instances that work: the gateway hears nothing of them for all that time.
    LongAnswers,
    /// The same, and one of the instances hangs: its reports stand still.
    LongAnswersHung,
    /// The same, and no instance reports anything, so that nobody can tell it from the others.
    LongAnswersMute,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 8] = [
        Kind::Poison,
        Kind::Full,
        Kind::BlackHole,
        Kind::LimitedPool,
        Kind::LimitedKey,
        Kind::LongAnswers,
        Kind::LongAnswersHung,
        Kind::LongAnswersMute,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Poison => "requests that fail everywhere",
            Kind::Full => "instances at capacity",
            Kind::BlackHole => "a black hole",
            Kind::LimitedPool => "a limited pool",
            Kind::LimitedKey => "a limited key",
            Kind::LongAnswers => "long answers",
            Kind::LongAnswersHung => "long answers, one instance hangs",
            Kind::LongAnswersMute => "long answers, one instance is mute",
        }
    }

    fn is_long(self) -> bool {
        matches!(self, Kind::LongAnswers | Kind::LongAnswersHung | Kind::LongAnswersMute)
    }
}

/// What has happened in a scenario.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Result {
    /// Requests of clients that do nothing wrong.
    pub requests: usize,
    /// Of those, the ones with their whole answer.
    pub answered: usize,
    /// Requests of the client that misbehaves.
    pub culprits: usize,
    /// Attempts at all requests beyond the first, and reruns.
    pub further: usize,
    /// What must not happen, and did.
    pub violations: Vec<String>,
}

/// A scenario before it runs.
struct Scene {
    kind: Kind,
    router: Router,
    workload: Workload,
    faults: Vec<Scheduled>,
    options: Options,
    /// The instances that are at fault.
    faulty: Vec<InstanceId>,
    /// From when to when they are.
    span: (Duration, Duration),
    /// What they say.
    reply: Option<Reply>,
}

/// What has come of a run.
struct Course {
    outcomes: Vec<Outcome>,
    /// How many looks at a gateway have shown each instance ejected.
    ejected: Vec<usize>,
    /// How many looks there were.
    looks: usize,
    leaks: Vec<String>,
}

/// Runs the scenario of a kind and a seed: one or two pools, one to three gateways and workers. What gateways see, and what they do, is as
/// in `envoy`: [`seeing`] is what the filter does.
pub fn run(config: &Config, kind: Kind, seed: u64, envoy: &Options) -> Result {
    let scene = Scene::drawn(config, kind, seed, envoy);
    let with = scene.run(true);
    // Of long answers, everything is said of each request.
    let without = (!kind.is_long()).then(|| scene.run(false));
    let violations = checks::violations(&scene, &with, without.as_ref());
    let others = || with.outcomes.iter().zip(&scene.workload.arrivals).filter(|(_, a)| is_other(a)).map(|(o, _)| o);
    Result {
        requests: others().count(),
        answered: others().filter(|outcome| outcome.is_answered()).count(),
        culprits: with.outcomes.len().saturating_sub(others().count()),
        further: with.outcomes.iter().map(|o| o.attempts.saturating_sub(1).saturating_add(o.reruns)).sum(),
        violations,
    }
}

/// Whether a request is of a client that does nothing wrong.
fn is_other(arrival: &Arrival) -> bool {
    arrival.manner.client != CULPRIT
}

impl Scene {
    fn drawn(config: &Config, kind: Kind, seed: u64, envoy: &Options) -> Scene {
        let mut random = Random::for_use(seed, 11);
        let pools = random.below(2).saturating_add(1);
        let router = Router::new(small(config, pools, INSTANCES), None);
        let options = Options {
            gateways: random.below(if kind == Kind::Poison { 2 } else { 3 }).saturating_add(1),
            workers: random.below(3).saturating_add(1),
            scrape_loss: if random.below(3) == 0 { 0.2 } else { 0.0 },
            affinity: random.below(2) == 0,
            tick: if kind.is_long() { envoy.tick * 4 } else { envoy.tick },
            seed,
            ..envoy.clone()
        };
        let workload = workload(&router, kind, &mut random, seed);
        let mut scene = Scene {
            kind,
            router,
            workload,
            faults: Vec::new(),
            options,
            faulty: Vec::new(),
            span: (Duration::ZERO, Duration::ZERO),
            reply: None,
        };
        scene.go_wrong(&mut random);
        scene
    }

    /// Draws what is at fault, since when and how.
    fn go_wrong(&mut self, random: &mut Random) {
        let seconds =
            |low: f64, high: f64, random: &mut Random| Duration::from_secs_f64(low + (high - low) * random.uniform());
        let since = seconds(5.0, 15.0, random);
        let one = InstanceId::new(random.below(self.router.config().fleet.instances.len()));
        let all: Vec<InstanceId> =
            self.router.config().fleet.pools.first().map(|p| p.instances.clone()).unwrap_or_default();
        let pause = Duration::from_secs(random.below(10) as u64 + 1);
        let limited = Reply::Error { status: 429, retry_after: Some(pause).filter(|_| random.below(3) > 0) };
        let (faulty, until, reply, answering) = match self.kind {
            Kind::Poison => return self.poison(since, random),
            Kind::LongAnswers => return,
            Kind::LongAnswersHung | Kind::LongAnswersMute => return self.hang(one, random),
            Kind::Full => {
                let reply = Reply::error(if random.below(2) == 0 { 503 } else { 429 });
                (all, LIMIT, reply, Answering::Bounded { waiting: random.below(3) + 1, reply })
            }
            Kind::BlackHole => {
                let refusals = [400, 401, 403, 404].map(Reply::error);
                let reply = refusals.get(random.below(5)).copied().unwrap_or(Reply::Empty);
                (vec![one], since + seconds(30.0, 40.0, random), reply, Answering::Replying(reply))
            }
            Kind::LimitedPool => (all, since + seconds(10.0, 20.0, random), limited, Answering::Replying(limited)),
            Kind::LimitedKey => {
                let rate = 0.3 + 0.5 * random.uniform();
                self.add_culprit(Duration::ZERO, &Arrivals::Constant { rate }, None);
                (vec![one], LIMIT, limited, Answering::Limiting { client: CULPRIT, reply: limited })
            }
        };
        let since = if until == LIMIT { Duration::ZERO } else { since };
        for instance in &faulty {
            let instance = Some(*instance);
            self.faults.push(Scheduled { at: since, fault: Fault::Answering { instance, as_: answering } });
            self.faults.push(Scheduled { at: until, fault: Fault::Answering { instance, as_: Answering::Served } });
        }
        (self.faulty, self.span, self.reply) = (faulty, (since, until), Some(reply));
    }

    fn poison(&mut self, since: Duration, random: &mut Random) {
        let replies = [Reply::error(500), Reply::error(502), Reply::Reset, Reply::ErrorEvent];
        self.reply = replies.get(random.below(replies.len())).copied();
        let rate = 0.3 + 2.0 * random.uniform();
        self.add_culprit(since, &Arrivals::Poisson { rate }, self.reply);
    }

    /// One instance hangs for good; where it is to be mute, no report has ever told anything.
    fn hang(&mut self, instance: InstanceId, random: &mut Random) {
        let at = Duration::from_secs_f64(30.0 + 90.0 * random.uniform());
        self.faults.push(Scheduled { at, fault: Fault::Hang { instance } });
        if self.kind == Kind::LongAnswersMute {
            let silence = Fault::Reporting { instance: None, as_: Reporting::Empty };
            self.faults.push(Scheduled { at: Duration::ZERO, fault: silence });
        }
        (self.faulty, self.span) = (vec![instance], (at, LIMIT));
    }

    /// One more client.
    fn add_culprit(&mut self, since: Duration, arrivals: &Arrivals, poison: Option<Reply>) {
        let seed = self.options.seed.wrapping_add(1 << 32);
        let times: Vec<Duration> = arrivals.times(LENGTH, seed).into_iter().filter(|at| *at >= since).collect();
        let policy = self.router.config().default_policy.index();
        let drawn = Workload::drawn(self.workload.templates.clone(), &times, policy, seed);
        let manner = Manner { client: CULPRIT, poison, ..Manner::default() };
        let arrivals = &mut self.workload.arrivals;
        arrivals.extend(drawn.arrivals.into_iter().map(|arrival| Arrival { manner, ..arrival }));
        arrivals.sort_by_key(|arrival| arrival.at);
    }

    /// With what misbehaves, or without.
    fn run(&self, misbehaves: bool) -> Course {
        let mut workload = self.workload.clone();
        for arrival in &mut workload.arrivals {
            arrival.manner.absent = !misbehaves && !is_other(arrival);
        }
        // That nobody reports is how the fleet is, and no fault.
        let is_given = |fault: &Scheduled| matches!(fault.fault, Fault::Reporting { .. });
        let faults: Vec<Scheduled> = self.faults.iter().filter(|f| misbehaves || is_given(f)).copied().collect();
        let mut simulation = Simulation::new(&self.router, &workload, &faults, self.options.clone());
        let instances = self.router.config().fleet.instances.len();
        let (mut ejected, mut looks) = (vec![0; instances], 0);
        let mut at = Duration::ZERO;
        let last = workload.arrivals.last().map_or(Duration::ZERO, |arrival| arrival.at);
        while at < last {
            at = at.saturating_add(LOOK);
            simulation.run_until(at);
            for gateway in 0..self.options.gateways {
                looks += 1;
                for (load, ejected) in simulation.loads(gateway).iter().zip(&mut ejected) {
                    *ejected += usize::from(matches!(load.standing, Standing::Ejected | Standing::HalfOpen));
                }
            }
        }
        simulation.finish(LIMIT);
        let settled = simulation.now().saturating_add(SLOT_TTL).saturating_add(Duration::from_secs(1));
        simulation.run_until(settled);
        let mut leaks = Vec::new();
        check_leaks(&simulation, &mut leaks);
        Course { outcomes: simulation.into_outcomes(), ejected, looks, leaks }
    }
}

/// Streams of several clients, half of which name their model; or requests for whole answers that are ten times as long.
fn workload(router: &Router, kind: Kind, random: &mut Random, seed: u64) -> Workload {
    let config = router.config();
    let fleet = &config.fleet;
    let mut open = ChatMix { templates: TEMPLATES, ..ChatMix::default() }.templates(fleet, seed);
    if kind.is_long() {
        open.iter_mut().for_each(lengthen);
    }
    let length = if kind.is_long() { LENGTH_OF_LONG } else { LENGTH };
    let (low, high) = match kind {
        Kind::Poison => (0.6, 0.9),
        Kind::Full => (0.8, 1.2),
        _ => (0.3, 0.8),
    };
    let utilisation = low + (high - low) * random.uniform();
    let rate = utilisation * sustainable_rates(fleet, &open).iter().sum::<f64>();
    let arrivals = match random.below(2) {
        0 => Arrivals::Poisson { rate },
        _ => Arrivals::Square { high: 1.5 * rate, low: 0.5 * rate, hold: length / 12 },
    };
    let mut workload =
        Workload::drawn(named(router, open), &arrivals.times(length, seed), config.default_policy.index(), seed);
    for arrival in &mut workload.arrivals {
        let client = random.below(OTHERS) as u32 + CULPRIT + 1;
        arrival.manner = Manner { client, whole: kind.is_long(), ..Manner::default() };
    }
    workload
}

/// Answers ten times as long, and expected to be, that a context still has room for.
fn lengthen(template: &mut Template) {
    let longer = |tokens: f64| (10.0 * tokens).min(6_000.0);
    template.prompt_tokens = template.prompt_tokens.min(1_000);
    template.prompt.token_ids = u64::from(template.prompt_tokens);
    template.output_tokens.iter_mut().for_each(|tokens| *tokens = longer(f64::from(*tokens)) as u32);
    for (estimate, _) in template.outlook.iter_mut().flat_map(|outlook| &mut outlook.estimates) {
        let of = [&mut estimate.output_tokens, &mut estimate.output_tokens_p80, &mut estimate.output_tokens_p90];
        of.into_iter().for_each(|tokens| *tokens = longer(*tokens));
    }
}

/// The templates as they are, and again as often, in turn for each pool, with its model's name.
fn named(router: &Router, open: Vec<Template>) -> Vec<Template> {
    let fleet = &router.config().fleet;
    let names: Vec<String> = fleet.pools.iter().filter_map(|pool| Some(fleet.model_of(pool)?.name.clone())).collect();
    let pinned = open.iter().zip(names.iter().cycle()).map(|(template, name)| Template {
        prompt: Prompt { model: Some(name.clone()), ..template.prompt.clone() },
        ..template.clone()
    });
    let pinned: Vec<Template> = pinned.collect();
    open.into_iter().chain(pinned).collect()
}

/// What gateways see in these scenarios: everything.
pub fn seeing() -> Options {
    Options { health: true, sees_attempts: true, reruns: true, header_loads: true, ..Options::default() }
}
