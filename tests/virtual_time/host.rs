//! One worker's memory as the gateway's host.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub(super) use routebalance_core::gateway::memory::{Exchange, Headers, HostCall, ROOT, header_of as value};
use routebalance_core::gateway::memory::{LocalAnswer, MemoryHost};
use routebalance_core::shared::{Board, Bytes, Key, Version};
use tokio::sync::Notify;
use tokio::time::Instant;

/// The host of one worker.
pub(super) type Memory = MemoryHost<Process>;

/// An answer that no instance has given.
#[derive(Clone, Debug)]
pub(super) struct Local {
    pub(super) status: u16,
    pub(super) headers: Headers,
    pub(super) body: Vec<u8>,
    /// Envoy's words on where it comes from; the filter has none.
    pub(super) details: &'static str,
}

impl From<LocalAnswer> for Local {
    fn from(LocalAnswer { status, headers, body }: LocalAnswer) -> Local {
        Local { status, headers, body, details: "" }
    }
}

/// What the workers share, and when it began.
#[derive(Clone, Debug)]
pub(super) struct Process {
    board: Arc<Mutex<Bytes>>,
    began: Instant,
}

impl Process {
    pub(super) fn new() -> Process {
        Process { board: Arc::default(), began: Instant::now() }
    }

    fn board(&self) -> MutexGuard<'_, Bytes> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows a worker what time it is.
    pub(super) fn tell_time(&self, host: &mut Memory) {
        // Not from 0: what has never happened is long ago.
        host.time = Duration::from_secs(100_000) + self.began.elapsed();
        host.time_of_day = Duration::from_secs(1_700_000_000) + self.began.elapsed();
    }
}

impl Board for Process {
    fn read(&self, key: Key) -> (Option<Vec<u8>>, Option<Version>) {
        self.board().read(key)
    }

    fn write(&mut self, key: Key, bytes: &[u8], version: Option<Version>) -> bool {
        self.board().write(key, bytes, version)
    }
}

/// Who waits for the gateway, by the numbers of their contexts.
#[derive(Debug, Default)]
pub(super) struct Wakes(pub(super) BTreeMap<u32, Arc<Notify>>);

impl Wakes {
    /// Tells those that the gateway has answered or let go on.
    pub(super) fn tell(&self, host: &mut Memory) {
        for id in std::mem::take(&mut host.woken) {
            if let Some(wake) = self.0.get(&id) {
                wake.notify_one();
            }
        }
    }
}
