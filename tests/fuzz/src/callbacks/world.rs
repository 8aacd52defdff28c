//! Several VMs that share a board and a clock.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use routebalance_core::config::Config;
use routebalance_core::gateway::Gateway;
use routebalance_core::predictor::Predictor;
use routebalance_core::router::Router;
use routebalance_core::shared::Key;

use super::board::{Process, SharedBoard};
use super::host::Watched;
use super::vm::Vm;
use crate::choices::Choices;
use crate::material::{CONFIGURATIONS, PREDICTED};
use crate::novelty::{magnitude, see, tell};

/// VMs at the same time.
const VMS_MAX: usize = 4;
/// Keys of records: so many are there of each of these VMs and configurations.
const KEYS_MAX: usize = 2_000;

thread_local! {
    /// Read once: a gateway begins with a copy.
    static ROUTERS: Vec<Router> = CONFIGURATIONS.iter().map(|json| {
        let config = Config::parse(json).unwrap_or_else(|problem| panic!("{problem}"));
        let predictor = config.predictor_enabled.then(|| Predictor::load().expect("the predictor loads"));
        Router::new(config, predictor)
    }).collect();
}

/// A process with its VMs.
pub(super) struct World {
    process: Rc<RefCell<Process>>,
    pub(super) vms: Vec<Vm>,
    pub(super) time: Duration,
    booted: u64,
}

impl World {
    pub(super) fn begin(choices: &mut Choices<'_>) -> World {
        let time = Duration::from_secs(1_000);
        let mut world = World { process: Rc::default(), vms: Vec::new(), time, booted: 0 };
        let vms = match choices.byte() {
            0..=149 => 1,
            150..=229 => 2,
            _ => 3,
        };
        (0..vms).for_each(|_| world.boot(choices));
        world.pass(choices, Duration::from_millis(50));
        world.tick_all();
        world
    }

    /// Another VM begins.
    pub(super) fn boot(&mut self, choices: &mut Choices<'_>) {
        if self.vms.len() >= VMS_MAX {
            return;
        }
        let which = match choices.byte() {
            252.. => PREDICTED,
            byte => usize::from(byte) % PREDICTED,
        };
        let router = ROUTERS.with(|routers| routers[which].clone());
        self.booted += 1;
        let owner = self.booted;
        let identity = router.config().identity.max(1);
        let board = SharedBoard { process: Rc::clone(&self.process), owner, identity };
        let mut host = Watched::new(board);
        host.memory.time = self.time;
        let gateway = Gateway::new(router, owner, &mut host);
        let mut vm = Vm::new(gateway, host);
        vm.tampered = self.process.borrow().tampered;
        see(("boot", which));
        tell(|| format!("VM {owner} begins with configuration {which}"));
        self.vms.push(vm);
    }

    /// A VM ends: it says so, or it is gone.
    pub(super) fn end(&mut self, choices: &mut Choices<'_>) {
        if self.vms.is_empty() {
            return;
        }
        let mut vm = self.vms.remove(choices.below(self.vms.len()));
        match choices.byte() % 3 {
            0 => {}
            1 => vm.leave(),
            _ => {
                vm.leave();
                vm.finish();
            }
        }
    }

    /// Time passes.
    pub(super) fn pass(&mut self, choices: &mut Choices<'_>, time: Duration) {
        self.time = self.time.saturating_add(time);
        self.tell_time(choices);
    }

    fn tell_time(&mut self, choices: &mut Choices<'_>) {
        let days = if choices.in_256(8) { choices.number() } else { 20_000 };
        let time_of_day = Duration::from_secs(days.wrapping_mul(86_400)).saturating_add(self.time);
        self.process.borrow_mut().now = self.time;
        for vm in &mut self.vms {
            (vm.host.memory.time, vm.host.memory.time_of_day) = (self.time, time_of_day);
        }
    }

    /// The clock that nobody sets begins anew, as with another process that goes on with what is here.
    pub(super) fn turn_back(&mut self, choices: &mut Choices<'_>) {
        self.process.borrow_mut().tampered = true;
        let part = choices.below(256) as u32;
        self.time = (self.time / 256).saturating_mul(part);
        self.tell_time(choices);
    }

    pub(super) fn tick_all(&mut self) {
        self.vms.iter_mut().for_each(Vm::tick);
    }

    /// One VM, if there is one.
    pub(super) fn vm(&mut self, choices: &mut Choices<'_>) -> Option<&mut Vm> {
        let vms = self.vms.len();
        self.vms.get_mut(choices.below(vms))
    }

    /// Some of the next compare-and-swaps fail.
    pub(super) fn fail_writes(&mut self, choices: &mut Choices<'_>) {
        self.process.borrow_mut().fail(choices.byte());
    }

    /// Somebody else writes a record: of another version, of another key, broken, cut, or garbage.
    pub(super) fn tamper(&mut self, choices: &mut Choices<'_>) {
        let key = any_key(choices);
        let from = if choices.in_256(64) { any_key(choices) } else { key };
        let mut process = self.process.borrow_mut();
        let mut bytes = process.record(from);
        match choices.byte() % 5 {
            0 => bytes = choices.raw(64),
            1 => bytes.truncate(choices.below(bytes.len() + 1)),
            2 => {
                let at = choices.below(bytes.len().max(1));
                let byte = choices.byte();
                bytes.get_mut(at).into_iter().for_each(|old| *old = byte);
            }
            3 => bytes.extend(choices.raw(40)),
            _ => {
                // The head of a good record, and garbage.
                bytes.truncate(9 + choices.below(40));
                bytes.extend(choices.raw(120));
            }
        }
        tell(|| format!("{key} becomes {bytes:?}"));
        see(("tamper", std::mem::discriminant(&key), magnitude(bytes.len() as u64)));
        process.tamper(key, &bytes);
        drop(process);
        self.vms.iter_mut().for_each(|vm| vm.tampered = true);
    }

    /// Everything ends.
    pub(super) fn finish(mut self) {
        self.vms.iter_mut().for_each(Vm::finish);
        let keys = self.process.borrow().keys();
        assert!(keys <= KEYS_MAX, "{keys} keys");
    }
}

fn any_key(choices: &mut Choices<'_>) -> Key {
    let (slot, segment) = (choices.below(5), choices.below(34));
    match choices.byte() % 16 {
        0 => Key::Slots,
        1 => Key::Health,
        2 => Key::Reports(slot),
        3 => Key::Roster(slot),
        4 => Key::Shown(slot),
        5 => Key::Prices(slot),
        6 => Key::Counters(slot),
        7 => Key::Glimpses(slot),
        8 => Key::Responses(slot),
        9 => Key::Placements(slot, segment),
        10 => Key::Lengths(slot),
        11 => Key::Speeds(slot),
        12 => Key::Beliefs(slot),
        13 => Key::CountersRow(slot, segment as u32),
        14 => Key::ReportRow(slot, segment as u32),
        _ => Key::Recent(slot, segment),
    }
}
