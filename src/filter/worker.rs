//! The core's worker as the contexts of one VM share it, with Envoy's shared data as its board.

use std::cell::RefCell;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::ops::{Deref, DerefMut};
use std::rc::Rc;
use std::time::Duration;

use crate::assign::Batcher;
use crate::filter::batching::Held;
use crate::filter::host;
use crate::filter::rerun::Reruns;
use crate::router::Router;
use crate::shared::{Board, Key, Version};
use crate::worker::Statistic;

/// Envoy's shared data.
pub(super) struct Envoy;

impl Board for Envoy {
    fn read(&self, key: Key) -> (Option<Vec<u8>>, Option<Version>) {
        host::shared(&key.to_string())
    }

    fn write(&mut self, key: Key, bytes: &[u8], version: Option<Version>) -> bool {
        host::set_shared(&key.to_string(), bytes, version)
    }
}

/// State of one VM.
pub(super) struct Worker {
    core: crate::worker::Worker,
    metrics: host::Metrics,
    /// Requests that wait, by policy; `None` where a policy does not batch.
    pub(super) batchers: Vec<Option<Batcher<Held>>>,
    /// Requests that another instance may be asked for.
    pub(super) reruns: Reruns,
}

impl Deref for Worker {
    type Target = crate::worker::Worker;

    fn deref(&self) -> &crate::worker::Worker {
        &self.core
    }
}

impl DerefMut for Worker {
    fn deref_mut(&mut self) -> &mut crate::worker::Worker {
        &mut self.core
    }
}

/// The worker as streams hold it. One thread, and no host call calls back, so it is never borrowed twice.
#[derive(Clone)]
pub(super) struct Shared(Rc<RefCell<Worker>>);

impl Shared {
    pub(super) fn new(worker: Worker) -> Shared {
        Shared(Rc::new(RefCell::new(worker)))
    }

    /// Runs `f` on the worker, and shows what has happened; `None` if it is in use, which would be a defect but must not trap.
    pub(super) fn with<R>(&self, f: impl FnOnce(&mut Worker) -> R) -> Option<R> {
        let mut worker = self.0.try_borrow_mut().ok()?;
        let result = f(&mut worker);
        worker.show();
        Some(result)
    }
}

impl Worker {
    /// A worker that begins now.
    pub(super) fn new(router: Router, now: Duration) -> Worker {
        let owner = RandomState::new().build_hasher().finish();
        let batchers = router.config().policies.iter().map(|p| p.batching.map(Batcher::new)).collect();
        let mut core = crate::worker::Worker::new(router, owner, now);
        core.begin(&mut Envoy, now);
        Worker { core, metrics: host::Metrics::default(), batchers, reruns: Reruns::default() }
    }

    /// Whether any policy batches.
    pub(super) fn batches(&self) -> bool {
        self.batchers.iter().any(Option::is_some)
    }

    fn show(&mut self) {
        for statistic in self.core.statistics.take() {
            match statistic {
                Statistic::Count(name) => self.metrics.count(&name),
                Statistic::Gauge(name, value) => self.metrics.set(&name, value),
                Statistic::Observe(name, value) => self.metrics.observe(&name, value),
                Statistic::Warn(sentence) => log::warn!("{sentence}"),
            }
        }
    }
}
