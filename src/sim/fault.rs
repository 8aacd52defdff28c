//! What goes wrong, and when: faults are data.

use std::time::Duration;

use routebalance_core::fleet::InstanceId;
use routebalance_core::telemetry::Load;

/// Something that goes wrong, or is put right.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// An instance dies: its streams are cut, connections to it are refused, scrapes find nobody.
    Kill {
        /// The instance.
        instance: InstanceId,
    },
    /// An instance starts anew, empty.
    Start {
        /// The instance.
        instance: InstanceId,
    },
    /// An instance stops working and keeps everything open; its report says for ever what it said last.
    Hang {
        /// The instance.
        instance: InstanceId,
    },
    /// From now on an instance reports like this.
    Reporting {
        /// The instance; `None` for all.
        instance: Option<InstanceId>,
        /// How.
        as_: Reporting,
    },
    /// From now on an instance answers requests like this.
    Answering {
        /// The instance; `None` for all.
        instance: Option<InstanceId>,
        /// How.
        as_: Answering,
    },
    /// From now on Envoy's cluster has an instance, or has it no more: what it serves goes on.
    Listing {
        /// The instance.
        instance: InstanceId,
        /// Whether it is in the list.
        is_listed: bool,
    },
    /// A worker's VM dies with its streams, and another one takes its place.
    KillWorker {
        /// Index of the gateway.
        gateway: usize,
        /// Index of the worker.
        worker: usize,
    },
    /// A gateway's process dies with its streams and all it knew, and starts again.
    RestartGateway {
        /// Index of the gateway.
        gateway: usize,
    },
}

/// What an instance answers to a scrape.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Reporting {
    /// The truth.
    #[default]
    Honest,
    /// What was true when this began.
    Frozen,
    /// Always this, be it zero, absurd or not a number.
    Constant(Load),
    /// A page without metrics.
    Empty,
    /// Nothing, until the scrape times out.
    Silent,
}

/// What an instance that works does with the requests that reach it. Its reports stay those of its engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Answering {
    /// It serves them.
    #[default]
    Served,
    /// It gives all of them this reply, at once.
    Replying(Reply),
    /// It gives one client's requests this reply, and serves the others.
    Limiting {
        /// Whose, as [`Manner::client`](crate::workload::Manner::client) has it.
        client: u32,
        /// The reply.
        reply: Reply,
    },
    /// It gives this reply where so many requests wait in its queue already, as vLLM's `--max-num-queued-reqs` does.
    Bounded {
        /// Requests in the queue.
        waiting: usize,
        /// The reply.
        reply: Reply,
    },
}

/// What comes of a request instead of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// An error of this status.
    Error {
        /// The status.
        status: u16,
        /// After which time to come again, if it says so.
        retry_after: Option<Duration>,
    },
    /// Status 200, and nothing else.
    Empty,
    /// A stream of status 200 that says that it has failed.
    ErrorEvent,
    /// The connection breaks off before the first byte.
    Reset,
}

impl Reply {
    /// An error that says nothing of when to come again.
    pub fn error(status: u16) -> Reply {
        Reply::Error { status, retry_after: None }
    }

    /// The status that a client sees, if it sees one.
    pub fn status(self) -> Option<u16> {
        match self {
            Reply::Error { status, .. } => Some(status),
            Reply::Empty | Reply::ErrorEvent => Some(200),
            Reply::Reset => None,
        }
    }
}

/// A fault and its time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scheduled {
    /// When.
    pub at: Duration,
    /// What.
    pub fault: Fault,
}
