//! The gateways of one VM, one per configuration, as its contexts share them.

use std::cell::RefCell;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::rc::{Rc, Weak};

use crate::envoy::Envoy;
use crate::host;
use routebalance_core::config::Drill;
use routebalance_core::gateway::Gateway;
use routebalance_core::names;
use routebalance_core::router::Router;
use routebalance_core::worker::Statistic;

/// A gateway and its statistics in Envoy.
type Cell = RefCell<(Gateway, host::Metrics)>;

/// A gateway and its statistics. One thread, and no host call calls back, so it is never borrowed twice.
#[derive(Clone)]
pub(super) struct Shared(Rc<Cell>);

thread_local! {
    /// The gateways of this VM. Filters of clusters have root contexts of their own and share the VM.
    static GATEWAYS: RefCell<Vec<Weak<Cell>>> = const { RefCell::new(Vec::new()) };
}

impl Shared {
    /// A gateway that begins now.
    pub(super) fn new(router: Router) -> Shared {
        let owner = RandomState::new().build_hasher().finish();
        let gateway = Gateway::new(router, owner, &mut Envoy::default());
        let shared = Rc::new(RefCell::new((gateway, host::Metrics::default())));
        let _ = GATEWAYS.try_with(|gateways| {
            if let Ok(mut gateways) = gateways.try_borrow_mut() {
                gateways.retain(|other| other.strong_count() > 0);
                gateways.push(Rc::downgrade(&shared));
            }
        });
        Shared(shared)
    }

    /// The gateway that has the request of this context.
    pub(super) fn that_has(context: u32) -> Option<Shared> {
        let has = |shared: &Shared| shared.0.try_borrow().is_ok_and(|inner| inner.0.has(context));
        let find = |gateways: &RefCell<Vec<Weak<_>>>| {
            gateways.try_borrow().ok()?.iter().filter_map(Weak::upgrade).map(Shared).find(has)
        };
        GATEWAYS.try_with(find).ok().flatten()
    }

    /// Runs `f` on the gateway, and shows what has happened; `None` if it is in use, which would be a defect but must not trap.
    pub(super) fn run<R>(&self, f: impl FnOnce(&mut Gateway) -> R) -> Option<R> {
        let mut inner = self.0.try_borrow_mut().ok()?;
        let (gateway, metrics) = &mut *inner;
        let result = f(gateway);
        show(metrics, gateway.worker.statistics.take());
        Some(result)
    }

    /// Shows what was counted since the last time: counts can wait for a tick, and cost less together.
    pub(super) fn show_counts(&self) {
        let Ok(mut inner) = self.0.try_borrow_mut() else { return };
        let (gateway, metrics) = &mut *inner;
        show(metrics, gateway.worker.statistics.take_counts());
    }

    /// Whether a request asks for the end of this VM, and may.
    pub(super) fn is_fatal(
        &self,
        method: impl FnOnce() -> Option<String>,
        path: impl FnOnce() -> Option<String>,
    ) -> bool {
        self.run(|gateway| gateway.worker.router.config().drills(Drill::Vm)) == Some(true)
            && method().as_deref() == Some("POST")
            && path().as_deref() == Some(names::DRILL_VM_PATH)
    }
}

fn show(metrics: &mut host::Metrics, statistics: Vec<Statistic>) {
    for statistic in statistics {
        match statistic {
            Statistic::Count(name, more) => metrics.count(&name, more),
            Statistic::Gauge(name, value) => metrics.set(&name, value),
            Statistic::Observe(name, value) => metrics.observe(&name, value),
            Statistic::Warn(sentence) => log::warn!("{sentence}"),
        }
    }
}
