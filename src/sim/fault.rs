//! What goes wrong, and when: faults are data.

use std::time::Duration;

use crate::telemetry::Load;

/// Something that goes wrong, or is put right.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// An instance dies: its streams are cut, connections to it are refused, scrapes find nobody.
    Kill {
        /// Index of the instance.
        instance: usize,
    },
    /// An instance starts anew, empty.
    Start {
        /// Index of the instance.
        instance: usize,
    },
    /// An instance stops working and keeps everything open; its report says for ever what it said last.
    Hang {
        /// Index of the instance.
        instance: usize,
    },
    /// From now on an instance reports like this.
    Reporting {
        /// Index of the instance; `None` for all.
        instance: Option<usize>,
        /// How.
        as_: Reporting,
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

/// A fault and its time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scheduled {
    /// When.
    pub at: Duration,
    /// What.
    pub fault: Fault,
}
