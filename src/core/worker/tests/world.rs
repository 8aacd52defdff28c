//! Workers of several configurations on one board in virtual time, with instances that report, clocks that are set, and VMs that die.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::config::Config;
use crate::fleet::InstanceId;
use crate::random::Random;
use crate::reckoning::Dispatch;
use crate::router::Router;
use crate::shared::Board;
use crate::worker::{Purpose, Statistic, Worker};

pub(super) const MS: Duration = Duration::from_millis(1);
pub(super) const TICK: Duration = Duration::from_millis(50);
pub(super) const PERIOD: Duration = Duration::from_millis(250);
/// Until an instance's answer is here.
const ROUND_TRIP: Duration = Duration::from_millis(2);

/// What a VM has asked, of which endpoint and which path.
type Asked = (Purpose, (Option<String>, String));

/// A VM.
pub(super) struct Vm {
    pub(super) worker: Worker,
    pub(super) configuration: usize,
    next_tick: Duration,
    pub(super) paused_until: Duration,
    /// Questions under way, and when they are answered.
    answers: Vec<(Duration, Asked)>,
    /// Requests that it has open.
    pub(super) open: Vec<Dispatch>,
}

/// An instance as it really is.
#[derive(Clone, Debug)]
pub(super) struct Server {
    /// Requests that nobody here has sent.
    pub(super) foreign: u64,
    pub(super) is_dead: bool,
    /// How often each path was asked for.
    pub(super) asked: BTreeMap<String, u64>,
}

pub(super) struct World<B> {
    pub(super) board: B,
    /// Time that passes.
    pub(super) passed: Duration,
    /// What clocks show when nothing has passed.
    pub(super) offset: Duration,
    pub(super) vms: Vec<Option<Vm>>,
    pub(super) servers: BTreeMap<String, Server>,
    pub(super) gauges: BTreeMap<String, u64>,
    pub(super) counts: BTreeMap<String, u64>,
    pub(super) warnings: Vec<String>,
    owners: u64,
    connections: u64,
    pub(super) random: Random,
}

pub(super) fn address(i: usize) -> String {
    format!("10.0.0.{i}:8000")
}

/// A configuration of one pool with these instances, and what else is given.
pub(super) fn configuration(pool: &str, instances: &[usize], more: &Value) -> Config {
    let mut json: Value = serde_json::from_str(include_str!("../../../../envoy/routebalance.json")).unwrap();
    let of_pool: Vec<String> = instances.iter().map(|i| address(*i)).collect();
    json["pools"].as_array_mut().unwrap().truncate(1);
    json["models"].as_array_mut().unwrap().truncate(1);
    json["pools"][0]["name"] = json!(pool);
    json["pools"][0]["instances"] = json!(of_pool);
    json["policies"] = json!([{"name": "balanced", "weights": {"quality": 1, "latency": 1, "cost": 1}}]);
    json["default_policy"] = json!("balanced");
    json["routes"] = json!([]);
    json["envoy"] = json!({});
    json["predictor"] = json!({"enabled": false});
    for (field, value) in more.as_object().unwrap() {
        json[field] = value.clone();
    }
    Config::parse(json.to_string().as_bytes()).unwrap()
}

impl<B: Board + Default> World<B> {
    pub(super) fn new(servers: usize, seed: u64) -> World<B> {
        let server = || Server { foreign: 0, is_dead: false, asked: BTreeMap::new() };
        World {
            board: B::default(),
            passed: Duration::ZERO,
            offset: Duration::from_secs(1_000),
            vms: Vec::new(),
            servers: (0..servers).map(|i| (address(i), server())).collect(),
            gauges: BTreeMap::new(),
            counts: BTreeMap::new(),
            warnings: Vec::new(),
            owners: 0,
            connections: 0,
            random: Random::for_use(seed, 7),
        }
    }

    /// What clocks show.
    pub(super) fn now(&self) -> Duration {
        self.passed + self.offset
    }

    /// A VM begins with a configuration.
    pub(super) fn boot(&mut self, configuration: usize, config: &Config) -> usize {
        self.owners += 1;
        let mut worker = Worker::new(Router::new(config.clone(), None), self.owners, self.now());
        worker.begin(&mut self.board, self.passed + self.offset);
        let next_tick = self.passed + MS * u32::try_from(self.random.below(50)).unwrap();
        let vm = Vm {
            worker,
            configuration,
            next_tick,
            paused_until: Duration::ZERO,
            answers: Vec::new(),
            open: Vec::new(),
        };
        self.vms.push(Some(vm));
        self.vms.len() - 1
    }

    pub(super) fn vm(&mut self, vm: usize) -> &mut Vm {
        self.vms[vm].as_mut().unwrap()
    }

    /// VMs that are there, and not paused.
    pub(super) fn awake(&self) -> Vec<usize> {
        let is_awake = |vm: &Option<Vm>| vm.as_ref().is_some_and(|vm| vm.paused_until <= self.passed);
        (0..self.vms.len()).filter(|i| is_awake(&self.vms[*i])).collect()
    }

    pub(super) fn dispatch(&mut self, vm: usize, instance: usize) {
        let now = self.now();
        let World { vms, board, .. } = self;
        let vm = vms[vm].as_mut().unwrap();
        let dispatch = Dispatch { instance: InstanceId::new(instance), prompt_tokens: 100, output_tokens: 50 };
        vm.worker.dispatch(board, &dispatch, now);
        vm.open.push(dispatch);
    }

    /// A client opens a connection that this VM serves.
    pub(super) fn connect(&mut self, vm: usize) {
        self.connections += 1;
        let (now, connection) = (self.now(), self.connections);
        self.vm(vm).worker.served_connection(connection, now);
    }

    pub(super) fn finish(&mut self, vm: usize) {
        let now = self.now();
        let World { vms, board, random, .. } = self;
        let vm = vms[vm].as_mut().unwrap();
        if !vm.open.is_empty() {
            let dispatch = vm.open.swap_remove(random.below(vm.open.len()));
            vm.worker.finish(board, dispatch, now);
        }
    }

    pub(super) fn leave(&mut self, vm: usize) {
        let now = self.now();
        while !self.vm(vm).open.is_empty() {
            self.finish(vm);
        }
        let mut gone = self.vms[vm].take().unwrap();
        gone.worker.leave(&mut self.board, now);
        self.show(&mut gone.worker);
    }

    /// Requests that are really open on an instance by the VMs that live.
    pub(super) fn sent(&self, address: &str) -> u64 {
        let of = |vm: &Vm| {
            let fleet = &vm.worker.router.config().fleet;
            vm.open.iter().filter(|d| fleet.instances[d.instance.index()].address == address).count() as u64
        };
        self.vms.iter().flatten().map(of).sum()
    }

    fn show(&mut self, worker: &mut Worker) {
        let (new, counts) = (worker.statistics.take(), worker.statistics.take_counts());
        for statistic in new.into_iter().chain(counts) {
            match statistic {
                Statistic::Count(name, more) => *self.counts.entry(name).or_default() += more,
                Statistic::Gauge(name, value) => drop(self.gauges.insert(name, value)),
                Statistic::Observe(..) => {}
                Statistic::Warn(sentence) => self.warnings.push(sentence),
            }
        }
    }

    fn answer(&mut self, (address, path): &(Option<String>, String)) -> (Option<u16>, String) {
        let Some(address) = address.clone() else { return (Some(404), String::new()) };
        let sent = self.sent(&address);
        let Some(server) = self.servers.get_mut(&address) else { return (Some(503), String::new()) };
        *server.asked.entry(path.clone()).or_default() += 1;
        if server.is_dead {
            return (Some(503), String::new());
        }
        if !path.starts_with("/metrics") {
            return (Some(404), "not found".to_owned());
        }
        let running = sent + server.foreign;
        // They all work: otherwise they would be taken for stalled.
        let work = self.passed.as_millis();
        let page = format!(
            "vllm:num_requests_running {running}\nvllm:num_requests_waiting 0\nvllm:generation_tokens_total {work}\n"
        );
        (Some(200), page)
    }

    /// Lets time pass.
    pub(super) fn run(&mut self, time: Duration) {
        let end = self.passed + time;
        while self.passed < end {
            self.passed += MS;
            for i in self.awake() {
                self.step(i);
            }
        }
    }

    fn step(&mut self, i: usize) {
        let (passed, now) = (self.passed, self.now());
        let Some(mut vm) = self.vms[i].take() else { return };
        let (due, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut vm.answers).into_iter().partition(|(at, _)| *at <= passed);
        vm.answers = later;
        for (_, (purpose, asked)) in due {
            self.vms[i] = Some(vm);
            let (status, body) = self.answer(&asked);
            vm = self.vms[i].take().unwrap();
            vm.worker.fetched(&mut self.board, &purpose, status, body.as_bytes(), now);
        }
        if passed >= vm.next_tick {
            vm.next_tick = passed + TICK;
            let fetches = vm.worker.tick(&mut self.board, now);
            let asked = fetches.into_iter().filter_map(|fetch| {
                let question = vm.worker.question(&fetch.purpose)?;
                Some((
                    fetch.purpose,
                    (question.endpoint.map(|endpoint| endpoint.into_owned()), question.path.to_owned()),
                ))
            });
            vm.answers.extend(asked.map(|asked| (passed + ROUND_TRIP, asked)));
        }
        self.show(&mut vm.worker);
        self.vms[i] = Some(vm);
    }

    /// What is wrong with the loads that a VM sees: `None` if it sees each instance as it is, by fresh reports.
    pub(super) fn wrong(&mut self, i: usize) -> Option<String> {
        let now = self.now();
        let truth: Vec<(String, u64, u64)> =
            self.servers.iter().map(|(a, s)| (a.clone(), self.sent(a), self.sent(a) + s.foreign)).collect();
        let vm = self.vms[i].as_ref()?;
        let (loads, _) = vm.worker.loads(&self.board, now, 0.0);
        let counters = vm.worker.all_counters(&self.board);
        let fleet = &vm.worker.router.config().fleet;
        for (j, load) in loads?.iter().enumerate() {
            let (address, sent, all) = truth.iter().find(|(a, ..)| *a == fleet.instances[j].address)?;
            let open = counters.0[j].outstanding_requests();
            if open != *sent {
                return Some(format!("{address}: {open} open requests by the counters, {sent} in truth"));
            }
            // What others may have sent since is taken by lot, and what has run for a while may be over.
            if (load.in_flight() - *all as f64).abs() > 1.0 || load.trust < 1.0 {
                return Some(format!("{address}: {all} requests in truth, seen as {load:?}"));
            }
        }
        None
    }

    /// The age of the oldest report that a VM knows.
    pub(super) fn oldest(&self, i: usize) -> Duration {
        let vm = self.vms[i].as_ref().unwrap();
        let reports = vm.worker.known_reports(&self.board).unwrap_or_default();
        let ages = reports.0.iter().map(|r| r.at.map_or(Duration::MAX, |at| self.now().saturating_sub(at)));
        ages.max().unwrap_or(Duration::MAX)
    }
}
