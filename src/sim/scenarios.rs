//! Small fleets with random faults, and what must hold whatever goes wrong.

pub mod misbehaviour;

use std::time::Duration;

use crate::fault::{Fault, Reporting, Scheduled};
use crate::outcome::{End, Outcome};
use crate::simulation::{Options, Simulation};
use crate::workload::{Arrivals, ChatMix, Workload, sustainable_rates};
use routebalance_core::config::Config;
use routebalance_core::fleet::{Fleet, Instance, InstanceId};
use routebalance_core::random::Random;
use routebalance_core::router::Router;
use routebalance_core::shared::SLOT_TTL;
use routebalance_core::telemetry::Load;

/// How long requests come.
const LENGTH: Duration = Duration::from_secs(60);
/// After this, nothing may be open any more: requests that hang wait for Envoy's time-outs, one after the other.
const LIMIT: Duration = Duration::from_secs(1_200);
/// Share of what it would get from an even split that an instance which always worked and said the truth gets at least.
const SHARE_MIN: f64 = 0.25;
/// Requests of a pool per instance from which shares are judged.
const REQUESTS_MIN: f64 = 25.0;

/// What has happened in a scenario.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Result {
    /// Requests that came.
    pub requests: usize,
    /// Requests with their whole answer.
    pub answered: usize,
    /// Requests cut after their first byte.
    pub cut: usize,
    /// Requests that died with their worker or gateway.
    pub died: usize,
    /// Requests whose client left.
    pub left: usize,
    /// Requests that no instance served, since none of their pool worked all the time.
    pub unserved: usize,
    /// Faults.
    pub faults: usize,
    /// What must not happen, and did.
    pub violations: Vec<String>,
}

/// The first pools of a configuration with few instances and short batches, so that a fault matters.
pub fn small(config: &Config, pools: usize, instances: usize) -> Config {
    let mut fleet = Fleet { models: config.fleet.models.clone(), ..Fleet::default() };
    for (id, pool) in config.fleet.pools_by_id().take(pools) {
        let mut pool = pool.clone();
        let kept: Vec<InstanceId> = pool.instances.iter().copied().take(instances).collect();
        pool.limits.max_running = 8;
        pool.instances =
            (fleet.instances.len()..fleet.instances.len().saturating_add(kept.len())).map(InstanceId::new).collect();
        let of_pool = kept.iter().filter_map(|i| config.fleet.instance(*i)).cloned();
        fleet.instances.extend(of_pool.map(|instance| Instance { pool: id, ..instance }));
        fleet.pools.push(pool);
    }
    Config { fleet, predictor_enabled: false, ..config.clone() }
}

/// Runs the scenario of a seed: one or two pools, one to four gateways and workers, up to five faults that are put right again,
/// impatient clients. Envoy retries as in `envoy`.
pub fn run(config: &Config, seed: u64, envoy: &Options) -> Result {
    let mut random = Random::for_use(seed, 10);
    let pools = random.below(2).saturating_add(1);
    let router = Router::new(small(config, pools, 3), None);
    let fleet = &router.config().fleet;
    let options = Options {
        gateways: random.below(4).saturating_add(1),
        workers: random.below(4).saturating_add(1),
        scrape_loss: if random.below(3) == 0 { 0.3 } else { 0.0 },
        seed,
        ..envoy.clone()
    };
    let faults = faults(fleet, &options, &mut random);
    let workload = workload(&router, &mut random, seed);
    let mut simulation = Simulation::new(&router, &workload, &faults, options);
    let mut violations = Vec::new();
    let mut at = Duration::ZERO;
    while at < LENGTH {
        at = at.saturating_add(Duration::from_secs(5));
        simulation.run_until(at);
        check_loads(&simulation, &mut violations);
    }
    simulation.finish(LIMIT);
    // A dead worker's slot is found out.
    let settled = simulation.now().max(LENGTH).saturating_add(SLOT_TTL).saturating_add(Duration::from_secs(1));
    simulation.run_until(settled);
    check_leaks(&simulation, &mut violations);
    check_outcomes(simulation.outcomes(), &faults, &mut violations);
    check_shares(fleet, simulation.outcomes(), &faults, &mut violations);
    let count = |end: fn(&End) -> bool| simulation.outcomes().iter().filter(|o| end(&o.end)).count();
    Result {
        requests: simulation.outcomes().len(),
        answered: count(|e| *e == End::Answered),
        cut: count(|e| *e == End::Cut),
        died: count(|e| *e == End::GatewayDied),
        left: count(|e| *e == End::Left),
        unserved: count(|e| matches!(e, End::Unserved { .. })),
        faults: faults.len(),
        violations,
    }
}

fn workload(router: &Router, random: &mut Random, seed: u64) -> Workload {
    let fleet = &router.config().fleet;
    let templates = ChatMix { templates: 100, ..ChatMix::default() }.templates(fleet, seed);
    let rate = (0.3 + 0.5 * random.uniform()) * sustainable_rates(fleet, &templates).iter().sum::<f64>();
    let arrivals = match random.below(3) {
        0 => Arrivals::Poisson { rate },
        1 => Arrivals::Gamma { rate, shape: 0.3 },
        _ => Arrivals::Square { high: 1.5 * rate, low: 0.5 * rate, hold: LENGTH / 12 },
    };
    let mut workload =
        Workload::drawn(templates, &arrivals.times(LENGTH, seed), router.config().default_policy.index(), seed);
    for arrival in &mut workload.arrivals {
        if random.below(10) == 0 {
            arrival.patience = Some(Duration::from_secs_f64(random.exponential(3.0)));
        }
    }
    workload
}

fn faults(fleet: &Fleet, options: &Options, random: &mut Random) -> Vec<Scheduled> {
    let mut faults = Vec::new();
    for _ in 0..random.below(6) {
        let at = Duration::from_secs_f64(2.0 + 40.0 * random.uniform());
        let healed = at.saturating_add(Duration::from_secs_f64(1.0 + 15.0 * random.uniform()));
        let instance = InstanceId::new(random.below(fleet.instances.len()));
        let fault = match random.below(7) {
            0 | 1 => Fault::Kill { instance },
            2 => Fault::Hang { instance },
            3 => Fault::Reporting { instance: Some(instance), as_: lie(random) },
            4 => Fault::Reporting { instance: None, as_: lie(random) },
            5 => Fault::KillWorker { gateway: random.below(options.gateways), worker: random.below(options.workers) },
            _ => Fault::RestartGateway { gateway: random.below(options.gateways) },
        };
        faults.push(Scheduled { at, fault });
        let repair = match fault {
            Fault::Kill { instance } | Fault::Hang { instance } => Fault::Start { instance },
            Fault::Reporting { instance, .. } => Fault::Reporting { instance, as_: Reporting::Honest },
            Fault::Start { .. }
            | Fault::Answering { .. }
            | Fault::Listing { .. }
            | Fault::KillWorker { .. }
            | Fault::RestartGateway { .. } => continue,
        };
        faults.push(Scheduled { at: healed, fault: repair });
    }
    faults
}

fn lie(random: &mut Random) -> Reporting {
    let constant = |requests: f64| {
        Reporting::Constant(Load {
            running: Some(requests),
            waiting: Some(requests),
            kv_use: Some(requests),
            ..Load::default()
        })
    };
    match random.below(7) {
        0 => Reporting::Frozen,
        1 => Reporting::Empty,
        2 => Reporting::Silent,
        3 => constant(0.0),
        4 => constant(f64::NAN),
        5 => constant(7.0),
        _ => constant(1e5),
    }
}

fn check_loads(simulation: &Simulation<'_>, violations: &mut Vec<String>) {
    for gateway in 0..simulation.gateways().len() {
        for (i, load) in simulation.loads(gateway).iter().enumerate() {
            let numbers =
                [load.running, load.waiting, load.pending_output_tokens, load.pending_prompt_tokens, load.trust];
            if !numbers.iter().all(|n| n.is_finite() && *n >= 0.0) {
                violations.push(format!("at {:?} gateway {gateway} sees {load:?} on instance {i}", simulation.now()));
            }
        }
    }
}

fn check_leaks(simulation: &Simulation<'_>, violations: &mut Vec<String>) {
    for (g, gateway) in simulation.gateways().iter().enumerate() {
        for (i, c) in gateway.counters().0.iter().enumerate() {
            let open = [c.outstanding_requests(), c.outstanding_prompt_tokens(), c.outstanding_output_tokens()];
            if open != [0; 3] {
                violations.push(format!("gateway {g} has leaked {open:?} on instance {i}"));
            }
        }
    }
    for (i, server) in simulation.servers().iter().enumerate() {
        if server.holds() > 0 {
            violations.push(format!("instance {i} still holds {} requests", server.holds()));
        }
    }
}

fn check_outcomes(outcomes: &[Outcome], faults: &[Scheduled], violations: &mut Vec<String>) {
    let any = |is: fn(&Fault) -> bool| faults.iter().any(|f| is(&f.fault));
    let instances_fail = any(|f| matches!(f, Fault::Kill { .. } | Fault::Hang { .. }));
    let gateways_fail = any(|f| matches!(f, Fault::KillWorker { .. } | Fault::RestartGateway { .. }));
    for (i, outcome) in outcomes.iter().enumerate() {
        let may = match outcome.end {
            End::Answered | End::Left => true,
            End::Unserved { healthy_peer } => !healthy_peer && instances_fail,
            End::Cut => instances_fail,
            End::GatewayDied => gateways_fail,
            End::Open | End::Refused | End::Failed { .. } => false,
        };
        if !may {
            violations.push(format!("request {i} of {:?} ended as {:?}", outcome.at, outcome.end));
        }
    }
}

/// Requests decided for each instance.
pub fn decided(fleet: &Fleet, outcomes: &[Outcome]) -> Vec<usize> {
    let mut counts = vec![0_usize; fleet.instances.len()];
    for decision in outcomes.iter().filter_map(|o| o.decision.as_ref()) {
        if let Some(count) = counts.get_mut(decision.to.instance.index()) {
            *count = count.saturating_add(1);
        }
    }
    counts
}

fn check_shares(fleet: &Fleet, outcomes: &[Outcome], faults: &[Scheduled], violations: &mut Vec<String>) {
    let counts = decided(fleet, outcomes);
    let touches = |f: &Scheduled, i: InstanceId| match f.fault {
        Fault::Kill { instance } | Fault::Hang { instance } => instance == i,
        Fault::Reporting { instance, as_ } => instance == Some(i) && as_ != Reporting::Honest,
        Fault::Start { .. }
        | Fault::Answering { .. }
        | Fault::Listing { .. }
        | Fault::KillWorker { .. }
        | Fault::RestartGateway { .. } => false,
    };
    for pool in &fleet.pools {
        let count_of = |i: &InstanceId| counts.get(i.index()).copied().unwrap_or_default();
        let even = pool.instances.iter().map(count_of).sum::<usize>() as f64 / pool.instances.len().max(1) as f64;
        for i in pool.instances.iter().filter(|i| !faults.iter().any(|f| touches(f, **i))) {
            if even >= REQUESTS_MIN && (count_of(i) as f64) < SHARE_MIN * even {
                let (index, name) = (i.index(), &pool.name);
                violations.push(format!("instance {index} of pool {name} got {} of {even:.0}", count_of(i)));
            }
        }
    }
}

#[cfg(test)]
mod tests;
