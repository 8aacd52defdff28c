use std::time::Duration;

use serde_json::json;
use world::{MS, PERIOD, TICK, World, address, configuration};

use crate::affinity::{Keys, Placement};
use crate::config::Config;
use crate::fleet::{InstanceId, ModelId};
use crate::learning::lengths::LengthLesson;
use crate::shared::{Board, Bytes, Key, MAX_SLOTS, MemoryBoard, SLOT_TTL};
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

mod world;

const SECOND: Duration = Duration::from_secs(1);
/// Worlds that a property is tried on; Node is slow.
const SEEDS: u64 = if cfg!(target_family = "wasm") { 3 } else { 12 };
/// Instances of a world.
const SERVERS: usize = 5;
/// A configuration's statistics have their own name where several show the same pools.
const A: &[usize] = &[0, 1, 2];
const B: &[usize] = &[2, 3, 4];

fn two(pool: &str) -> [Config; 2] {
    [configuration(pool, A, &json!({})), configuration(pool, B, &json!({"name": "b"}))]
}

/// Two VMs of each configuration.
fn world<C: Board + Default>(seed: u64, configurations: &[Config]) -> World<C> {
    let mut world = World::new(SERVERS, seed);
    for (i, config) in configurations.iter().enumerate() {
        world.boot(i, config);
        world.boot(i, config);
    }
    world
}

/// What happens in a life of VMs; everything is over after [`SETTLED`].
fn disturb<C: Board + Default>(world: &mut World<C>, configurations: &mut Vec<Config>) {
    let awake = world.awake();
    if awake.is_empty() {
        return;
    }
    let vm = awake[world.random.below(awake.len())];
    let configuration = world.vm(vm).configuration;
    match world.random.below(9) {
        // Clocks are set, forward and back.
        0 => world.offset += SECOND * u32::try_from(world.random.below(20)).unwrap(),
        1 => world.offset = world.offset.saturating_sub(SECOND * u32::try_from(world.random.below(20)).unwrap()),
        // A worker is held up, maybe for longer than its claims last.
        2 => {
            let until = world.passed + MS * u32::try_from(world.random.below(9_000)).unwrap();
            world.vm(vm).paused_until = until;
        }
        // A VM dies, and another one takes its place.
        3 | 4 => {
            world.vms[vm] = None;
            world.boot(configuration, &configurations[configuration].clone());
        }
        5 => {
            world.boot(configuration, &configurations[configuration].clone());
        }
        // A reload with other weights, after which the old VMs go on for a while.
        6 => {
            let config = reloaded(&configurations[configuration], world.random.below(1_000));
            configurations.push(config.clone());
            let new = configurations.len() - 1;
            world.boot(new, &config);
            world.boot(new, &config);
        }
        // The old VMs are drained.
        _ if awake.len() > 2 && configuration + 1 < configurations.len() => world.leave(vm),
        _ => {}
    }
}

/// The same configuration but for what makes it another one.
fn reloaded(config: &Config, number: usize) -> Config {
    Config { identity: config.identity.wrapping_add(1 + number as u64), ..config.clone() }
}

/// After so long without disturbance everything is as it should be: claims of the dead have expired, and a scrape has come of every instance.
fn settled() -> Duration {
    SLOT_TTL + SLOT_TTL / 3 + PERIOD * 4
}

fn traffic<C: Board + Default>(world: &mut World<C>) {
    for vm in world.awake() {
        let instances = world.vm(vm).worker.router.config().fleet.instances.len();
        for _ in 0..world.random.below(4) {
            let instance = world.random.below(instances);
            world.dispatch(vm, instance);
        }
        for _ in 0..world.random.below(4) {
            world.finish(vm);
        }
    }
    let server = address(world.random.below(SERVERS));
    let foreign = world.random.below(4) as u64;
    if let Some(server) = world.servers.get_mut(&server) {
        server.foreign = foreign;
    }
}

fn load_returns_to_the_truth<C: Board + Default>(seed: u64) {
    let mut configurations = two("small").to_vec();
    let mut world: World<C> = world(seed, &configurations);
    for round in 0..4 {
        for _ in 0..30 {
            world.run(MS * 100);
            traffic(&mut world);
            if world.random.below(6) == 0 {
                disturb(&mut world, &mut configurations);
            }
        }
        let late = world.vms.iter().flatten().map(|vm| vm.paused_until.saturating_sub(world.passed)).max();
        world.run(late.unwrap_or_default() + settled());
        for vm in world.awake() {
            assert_eq!(world.wrong(vm), None, "seed {seed}, round {round}, vm {vm}");
        }
    }
}

#[test]
fn reckoned_load_returns_to_the_truth_whatever_happens_to_clocks_and_vms() {
    for seed in 0..SEEDS {
        load_returns_to_the_truth::<MemoryBoard>(seed);
    }
    for seed in 0..SEEDS / 3 {
        load_returns_to_the_truth::<Bytes>(100 + seed);
    }
}

/// No clock is set here: a report's age is what passes.
#[test]
fn nobody_is_blind_for_longer_than_two_periods() {
    for seed in 0..SEEDS {
        let mut configurations = two("small").to_vec();
        let mut world: World<MemoryBoard> = world(seed, &configurations);
        world.run(PERIOD * 2 + TICK * 2);
        for _ in 0..30 {
            let known: Vec<usize> = world.awake();
            // Neither a clock nor a pause.
            let offset = world.offset;
            disturb(&mut world, &mut configurations);
            world.offset = offset;
            world.vms.iter_mut().flatten().for_each(|vm| vm.paused_until = Duration::ZERO);
            for _ in 0..20 {
                world.run(TICK);
                for vm in known.iter().copied().filter(|vm| world.vms[*vm].is_some()) {
                    // A round of scrapes takes a period, and a dead leader is replaced within two.
                    let oldest = world.oldest(vm);
                    assert!(
                        oldest <= PERIOD * 3 + TICK * 3,
                        "seed {seed}: vm {vm} knows nothing newer than {oldest:?}"
                    );
                }
            }
        }
    }
}

/// A leader's configuration is replaced by one that scrapes elsewhere: the instances are asked where the newer one says, at once.
#[test]
fn of_the_configurations_that_have_an_instance_the_newest_asks_it() {
    let wrong = configuration("small", A, &json!({"telemetry": {"metrics_path": "/wrong"}}));
    let right = configuration("small", A, &json!({}));
    let silent = configuration("small", A, &json!({"telemetry": {"enabled": false}}));
    let mut world: World<MemoryBoard> = world(1, std::slice::from_ref(&wrong));
    world.run(SECOND * 2);
    assert!(asked(&world, "/wrong") > 10);
    world.boot(1, &right);
    world.run(PERIOD * 2 + TICK);
    let (before, of_wrong) = (asked(&world, "/metrics"), asked(&world, "/wrong"));
    world.run(SECOND * 4);
    assert_eq!(asked(&world, "/wrong"), of_wrong, "the old one still asks");
    let in_four_seconds = asked(&world, "/metrics") - before;
    assert!((44..=50).contains(&in_four_seconds), "each instance four times a second, not {in_four_seconds}");
    assert_eq!((0..3).filter_map(|vm| world.wrong(vm)).next(), None, "all see by the new one's reports");
    // One that does not scrape takes nothing over, and one that asks in vain blinds nobody.
    world.boot(2, &silent);
    world.boot(3, &reloaded(&wrong, 5));
    world.run(SECOND * 4);
    assert_eq!((0..5).filter_map(|vm| world.wrong(vm)).next(), None);
}

fn asked(world: &World<MemoryBoard>, path: &str) -> u64 {
    world.servers.values().map(|server| server.asked.get(path).copied().unwrap_or_default()).sum()
}

/// Envoy goes back to a configuration whose VMs are still there, and tells nobody: new connections do.
#[test]
fn a_configuration_that_was_gone_back_to_speaks_again() {
    let of = |path: &str| configuration("small", A, &json!({"telemetry": {"metrics_path": path}}));
    let (a, b) = (of("/metrics"), of("/metrics?b"));
    let mut world: World<MemoryBoard> = world(12, &[a]);
    world.run(SECOND);
    world.boot(1, &b);
    world.run(SECOND * 8);
    // The second one came later, and both have clients.
    world.connect(0);
    world.connect(2);
    world.run(SECOND);
    let before = asked(&world, "/metrics");
    (0..40).for_each(|_| {
        world.connect(0);
        world.connect(2);
        world.run(SECOND / 2);
    });
    assert_eq!(asked(&world, "/metrics"), before, "two tenants do not take turns");
    // Only the first one gets new connections any more.
    for _ in 0..6 {
        world.connect(1);
        world.run(SECOND);
    }
    let (of_a, of_b) = (asked(&world, "/metrics"), asked(&world, "/metrics?b"));
    (0..4).for_each(|_| {
        world.connect(1);
        world.run(SECOND);
    });
    assert_eq!(asked(&world, "/metrics?b"), of_b, "the one that was withdrawn still asks");
    assert!(asked(&world, "/metrics") > of_a + 40);
}

#[test]
fn a_neighbour_that_asks_seldom_blinds_nobody() {
    let seldom = configuration("small", A, &json!({"telemetry": {"scrape_period_ms": 10_000}}));
    let mut world: World<MemoryBoard> = world(13, &[configuration("small", A, &json!({}))]);
    world.run(SECOND);
    world.boot(1, &seldom);
    for _ in 0..40 {
        world.run(SECOND / 2);
        assert!(world.oldest(0) <= SECOND + PERIOD * 2, "{:?}", world.oldest(0));
    }
}

/// Envoy tries a configuration on a VM that it then drops without a word.
#[test]
fn a_vm_that_never_ticks_leads_nobody() {
    let config = configuration("small", A, &json!({"telemetry": {"lease_ms": 10_000}}));
    let mut world: World<MemoryBoard> = World::new(SERVERS, 14);
    let tried = world.boot(0, &config);
    world.vms[tried] = None;
    world.boot(0, &config);
    world.run(PERIOD * 2);
    assert_eq!(world.wrong(1), None);
}

#[test]
fn a_reload_begins_with_the_hosts_that_are_known() {
    let mut world: World<MemoryBoard> = World::new(SERVERS, 15);
    let mut json: serde_json::Value = serde_json::from_str(include_str!("../../../envoy/routebalance.json")).unwrap();
    json["pools"][0]["instances"] = json!("discover");
    json["predictor"] = json!({"enabled": false});
    let config = Config::parse(json.to_string().as_bytes()).unwrap();
    world.boot(0, &config);
    world.run(TICK * 2);
    let cluster = &config.fleet.pools[0].cluster;
    let hosts = json!({"cluster_statuses": [{"name": cluster, "host_statuses": [
        {"address": {"socket_address": {"address": "10.0.0.4", "port_value": 8000}}, "health_status": {}}]}]});
    let now = world.now();
    let World { vms, board, .. } = &mut world;
    let first = &mut vms[0].as_mut().unwrap().worker;
    first.fetched(board, &crate::worker::Purpose::Hosts, Some(200), hosts.to_string().as_bytes(), now);
    let known = |world: &World<MemoryBoard>, vm: usize| {
        world.vms[vm].as_ref().unwrap().worker.router.config().fleet.instance_at("10.0.0.4:8000").is_some()
    };
    assert!(known(&world, 0));
    let reload = world.boot(1, &reloaded(&config, 1));
    assert!(known(&world, reload), "from the first request on");
}

#[test]
fn tenants_with_an_instance_in_common_see_each_others_load() {
    let [a, b] = two("small");
    let mut world: World<Bytes> = world(3, &[a, b]);
    world.run(SECOND);
    // 10.0.0.2 is the last of A and the first of B.
    (0..4).for_each(|_| world.dispatch(0, 2));
    (0..3).for_each(|_| world.dispatch(2, 0));
    world.servers.get_mut(&address(2)).unwrap().foreign = 2;
    world.run(PERIOD * 2);
    for vm in 0..4 {
        assert_eq!(world.wrong(vm), None, "vm {vm}");
        let of_common = if vm < 2 { 2 } else { 0 };
        let now = world.now();
        let load = world.vm(vm).worker.loads(&Bytes::default(), now, 0.5).0.unwrap()[of_common].in_flight();
        assert!(load <= 4.0, "without the board a worker knows its own only: {load}");
    }
}

/// Whoever is alone with a pool's name shows its gauges; they end with the pool.
#[test]
fn gauges_end_with_what_they_are_about_and_never_mix() {
    let (small, large) = (configuration("small", A, &json!({})), configuration("large", B, &json!({})));
    let gauge = |world: &World<MemoryBoard>, name: &str| world.gauges.get(&format!("routebalance.{name}")).copied();
    let mut world: World<MemoryBoard> = world(4, &[small.clone(), large.clone()]);
    world.run(SECOND);
    (0..3).for_each(|_| world.dispatch(0, 0));
    (0..2).for_each(|_| world.dispatch(2, 1));
    world.run(SECOND);
    assert_eq!(gauge(&world, "outstanding_requests.small"), Some(3));
    assert_eq!(gauge(&world, "outstanding_requests.large"), Some(2));
    // A reload: the newer one goes on with the gauges of the same names, whatever becomes of the old one.
    world.boot(2, &reloaded(&small, 1));
    world.run(SECOND);
    world.dispatch(4, 1);
    world.run(SECOND);
    assert_eq!(gauge(&world, "outstanding_requests.small"), Some(4));
    world.leave(0);
    world.leave(1);
    world.run(SECOND);
    assert_eq!(gauge(&world, "outstanding_requests.small"), Some(1));
    // The other pool's VMs die without a word.
    (world.vms[2], world.vms[3]) = (None, None);
    world.run(SLOT_TTL * 2);
    assert_eq!(gauge(&world, "outstanding_requests.large"), Some(0));
    assert_eq!(gauge(&world, "outstanding_requests.small"), Some(1));
    // Who has hidden gauges leaves them at once.
    let mut world: World<MemoryBoard> = super::tests::world(7, std::slice::from_ref(&small));
    (0..3).for_each(|_| world.dispatch(0, 0));
    world.run(SECOND);
    world.boot(1, &configuration("small", B, &json!({})));
    (0..2).for_each(|_| world.dispatch(2, 1));
    world.run(SECOND);
    assert_eq!(gauge(&world, "outstanding_requests.small"), Some(2));
    world.leave(2);
    world.run(PERIOD);
    assert_eq!(gauge(&world, "outstanding_requests.small"), Some(3));
    // Two tenants with a pool of the same name: each under its own.
    let [a, b] = two("small");
    let mut world: World<MemoryBoard> = super::tests::world(5, &[a, b]);
    (0..3).for_each(|_| world.dispatch(0, 0));
    (0..2).for_each(|_| world.dispatch(2, 1));
    world.run(SECOND);
    assert_eq!(gauge(&world, "outstanding_requests.small"), Some(3));
    assert_eq!(gauge(&world, "b.outstanding_requests.small"), Some(2));
    // The last one that leaves ends its own.
    (0..4).for_each(|vm| world.leave(vm));
    let open: Vec<_> =
        world.gauges.iter().filter(|(name, value)| name.contains("outstanding") && **value > 0).collect();
    assert!(open.is_empty(), "{open:?}");
}

/// The gauges of a configuration whose every VM has died are ended by whoever comes next.
#[test]
fn gauges_of_the_dead_are_ended_by_the_next_configuration() {
    let mut world: World<MemoryBoard> = world(6, &[configuration("small", A, &json!({}))]);
    world.dispatch(0, 0);
    world.run(SECOND);
    assert_eq!(world.gauges["routebalance.outstanding_requests.small"], 1);
    (world.vms[0], world.vms[1]) = (None, None);
    world.run(SLOT_TTL * 2);
    world.boot(1, &configuration("large", A, &json!({})));
    world.run(SECOND);
    assert_eq!(world.gauges["routebalance.outstanding_requests.small"], 0);
}

#[test]
fn what_was_learnt_stays_through_reloads_and_other_tenants() {
    let [a, b] = two("small");
    let more = configuration("other", A, &json!({}));
    let mut world: World<Bytes> = world(8, std::slice::from_ref(&a));
    world.run(SECOND);
    let lesson = LengthLesson { model: ModelId::new(0), residual: 0.7, censored: false };
    (0..40).for_each(|_| world.vm(1).worker.learner.learn_length(&lesson));
    let now = world.now();
    let keys = Keys::of_adapter("x");
    let placement: Placement = keys.placement(InstanceId::new(1), 10, 0, 10, now);
    world.vm(1).worker.place(placement);
    let World { vms, board, .. } = &mut world;
    vms[1].as_mut().unwrap().worker.remember_response(board, "resp_1", InstanceId::new(2), now);
    world.run(SECOND);
    let factor =
        |world: &mut World<Bytes>, vm: usize| world.vm(vm).worker.learner.learned().correction(ModelId::new(0));
    let taught = factor(&mut world, 0);
    assert!(taught > 1.5, "{taught}");
    // Another tenant takes the slots of the old VMs over and learns itself; then the first one comes back.
    (0..2).for_each(|vm| world.leave(vm));
    let others: Vec<usize> = [&more, &more, &b].into_iter().map(|config| world.boot(1, config)).collect();
    world.run(SECOND);
    (0..5).for_each(|_| world.vm(others[0]).worker.learner.learn_length(&LengthLesson { residual: 0.6, ..lesson }));
    world.run(SECOND);
    let back = world.boot(0, &reloaded(&a, 1));
    world.run(SECOND);
    assert!(factor(&mut world, back) > 1.5, "{}", factor(&mut world, back));
    let now = world.now();
    let worker = &world.vms[back].as_ref().unwrap().worker;
    assert!(worker.placements.memory.recall(&keys, 0.0, now).held().has_adapter(InstanceId::new(1)));
    assert_eq!(worker.holder(&world.board, "resp_1"), Some(InstanceId::new(2)));
}

#[test]
fn more_vms_than_slots_is_said_and_harms_nobody() {
    let config = configuration("small", A, &json!({}));
    let mut world: World<MemoryBoard> = World::new(SERVERS, 9);
    for _ in 0..=MAX_SLOTS {
        world.boot(0, &config);
    }
    world.run(TICK * 2);
    assert_eq!(world.counts["routebalance.without_slot"], 1);
    assert!(world.warnings.iter().any(|warning| warning.contains("all slots are taken")), "{:?}", world.warnings);
    world.dispatch(0, 0);
    world.run(PERIOD * 2);
    assert_eq!(world.wrong(MAX_SLOTS), None, "it sees the load of the others");
}

#[test]
fn dead_hosts_do_not_slow_the_scraping_of_live_ones() {
    let instances: Vec<usize> = (0..200).collect();
    let config = configuration("small", &instances, &json!({"telemetry": {"scrape_period_ms": 1_500}}));
    let mut world: World<MemoryBoard> = World::new(200, 10);
    world.boot(0, &config);
    // Their hosts answer nothing at all: each scrape takes its whole time-out.
    let is_dead = |i: usize| !i.is_multiple_of(10);
    let asked = |fetches: &[crate::worker::Fetch]| -> Vec<usize> {
        let of = |f: &crate::worker::Fetch| match f.purpose {
            crate::worker::Purpose::Scrape(scrape) => scrape.instance.index(),
            crate::worker::Purpose::Hosts => panic!("nothing is discovered"),
        };
        fetches.iter().map(of).collect()
    };
    let mut times: Vec<Vec<Duration>> = vec![Vec::new(); 200];
    let mut under_way: Vec<(Duration, crate::worker::Fetch)> = Vec::new();
    for tick in 0..1_200_u32 {
        let now = SECOND * 1_000 + TICK * tick;
        let World { vms, board, .. } = &mut world;
        let worker = &mut vms[0].as_mut().unwrap().worker;
        let (due, later): (Vec<_>, Vec<_>) = under_way.into_iter().partition(|(at, _)| *at <= now);
        under_way = later;
        for (_, fetch) in due {
            let dead = is_dead(asked(std::slice::from_ref(&fetch))[0]);
            let page: &[u8] = if dead { b"" } else { b"vllm:num_requests_running 1\n" };
            worker.fetched(board, &fetch.purpose, (!dead).then_some(200), page, now);
        }
        let fetches = worker.tick(board, now);
        asked(&fetches).into_iter().for_each(|i| times[i].push(now));
        under_way.extend(fetches.into_iter().map(|fetch| {
            let dead = is_dead(asked(std::slice::from_ref(&fetch))[0]);
            (now + if dead { SECOND } else { MS }, fetch)
        }));
    }
    // The first round finds out who is dead.
    for (i, times) in times.iter().enumerate().filter(|(i, _)| !is_dead(*i)) {
        let gaps = times.windows(2).skip(2).map(|pair| pair[1] - pair[0]);
        let longest = gaps.max().unwrap();
        assert!(longest <= MS * 1_600, "instance {i} was not asked for {longest:?}");
    }
    assert!(times.iter().all(|times| times.len() > 3), "the dead are asked now and then");
}

#[test]
fn workers_of_another_version_do_not_meet_these() {
    // Keys have the version in them, and no two keys are the same.
    let keys = [
        Key::Slots,
        Key::Health,
        Key::Pulse,
        Key::Reports(1),
        Key::Roster(1),
        Key::Shown(1),
        Key::Prices(1),
        Key::Counters(1),
        Key::CountersRow(1, 2),
        Key::ReportRow(1, 2),
        Key::Glimpses(1),
        Key::Responses(1),
        Key::Placements(1, 2),
        Key::Lengths(1),
        Key::Speeds(1),
        Key::Beliefs(1),
        Key::Recent(1, 2),
    ];
    let mut names: Vec<String> = keys.iter().map(Key::to_string).collect();
    assert!(names.iter().all(|name| name.starts_with("routebalance.6.")), "{names:?}");
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), keys.len());
}

/// A worker that is held up for longer than its claims last writes nothing under a slot that may be another's by then.
#[test]
fn a_worker_that_was_held_up_writes_nothing_over_its_slots_new_owner() {
    let config = configuration("small", A, &json!({}));
    let mut world: World<Bytes> = world(11, std::slice::from_ref(&config));
    world.run(SECOND);
    world.dispatch(0, 0);
    world.run(TICK);
    let slot = world.vm(0).worker.slot();
    world.vm(0).paused_until = world.passed + SLOT_TTL * 3;
    world.run(SLOT_TTL * 2);
    let heir = world.boot(0, &config);
    world.run(TICK * 2);
    assert_eq!(world.vm(heir).worker.slot(), slot);
    world.dispatch(heir, 1);
    // It wakes up in a callback, before any tick.
    world.vm(0).paused_until = Duration::ZERO;
    world.finish(0);
    let (now, key) = (world.now(), Key::Responses(slot.unwrap()));
    let World { vms, board, .. } = &mut world;
    let before = board.read(key);
    vms[0].as_mut().unwrap().worker.remember_response(board, "resp_1", InstanceId::new(2), now);
    assert_eq!(board.read(key), before, "the responses are the heir's");
    let counters = world.vms[1].as_ref().unwrap().worker.all_counters(&world.board);
    assert_eq!(counters.0[1].outstanding_requests(), 1, "the heir's request is still there");
    world.run(SECOND);
    assert_ne!(world.vm(0).worker.slot(), slot);
    assert_eq!((0..3).filter_map(|vm| world.wrong(vm)).next(), None);
}
