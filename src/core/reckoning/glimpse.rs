//! What a response header shows of an instance's load, between two reports.

use std::time::Duration;

use super::{InstanceCounters, InstanceReport};
use crate::telemetry::Load;

/// A partial report: what the header `endpoint-load-metrics` of a response said (ORCA). vLLM sends waiting and KV use, at the end
/// of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Glimpse {
    /// When the header came.
    pub at: Duration,
    /// Requests that are being computed.
    pub running: Option<f64>,
    /// Requests that wait.
    pub waiting: Option<f64>,
    /// Share of the KV cache in use, from 0 to 1.
    pub kv_use: Option<f64>,
    /// The counters of all workers for the instance then, with the request that was answered as finished.
    pub own: InstanceCounters,
}

impl Glimpse {
    /// The glimpse that a header gave; `None` if it said nothing.
    pub fn from_load(load: &Load, at: Duration, own: InstanceCounters) -> Option<Glimpse> {
        let Load { running, waiting, kv_use, .. } = *load;
        (!load.is_empty()).then_some(Glimpse { at, running, waiting, kv_use, own })
    }
}

impl InstanceReport {
    /// Takes a glimpse over into the report, if it is newer. Requests are carried forward from the report by what was sent and
    /// finished since; what the glimpse says replaces that. Where it says only how many wait: if none do, all others run; if
    /// some do, the batch is as full as it was. Says whether it has learnt anything.
    pub fn glimpsed(&mut self, glimpse: &Glimpse) -> bool {
        if self.at.is_some_and(|at| at >= glimpse.at) {
            return false;
        }
        self.unreachable = 0;
        let kv_use = glimpse.kv_use.or(self.load.kv_use);
        let kv_is_news = kv_use != self.load.kv_use;
        self.load.kv_use = kv_use;
        if glimpse.running.is_none() && glimpse.waiting.is_none() {
            return kv_is_news;
        }
        let outstanding = glimpse.own.outstanding_requests() as f64;
        let believed = match self.load.running {
            Some(running) => {
                let change = outstanding - self.own.outstanding_requests() as f64;
                (running + self.load.waiting.unwrap_or(0.0) + change).max(0.0)
            }
            // Never reported: what this gateway has sent is there at least.
            None => outstanding,
        };
        let waiting = glimpse.waiting.unwrap_or_else(|| (believed - glimpse.running.unwrap_or(0.0)).max(0.0));
        let running = glimpse.running.unwrap_or_else(|| {
            let rest = (believed - waiting).max(0.0);
            if waiting > 0.0 { rest.max(self.load.running.unwrap_or(0.0)) } else { rest }
        });
        (self.load.running, self.load.waiting) = (Some(running), Some(waiting));
        (self.at, self.own) = (Some(glimpse.at), glimpse.own);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn a_newer_glimpse_updates_what_it_says() {
        let at = Duration::from_secs;
        let own = |dispatched_requests| InstanceCounters { dispatched_requests, ..InstanceCounters::default() };
        let report = |running, waiting, outstanding| InstanceReport {
            at: Some(at(100)),
            load: Load { running: Some(running), waiting: Some(waiting), kv_use: Some(0.2), ..Load::default() },
            own: own(outstanding),
            repeats: 0,
            unreachable: 3,
        };
        let glimpse = |waiting, outstanding| Glimpse {
            at: at(101),
            waiting: Some(waiting),
            kv_use: Some(0.5),
            own: own(outstanding),
            ..Glimpse::default()
        };
        let rows = [
            ("as it was", report(3.0, 0.0, 3), glimpse(0.0, 3), (3.0, 0.0)),
            ("two more sent", report(3.0, 0.0, 3), glimpse(0.0, 5), (5.0, 0.0)),
            ("all that waited run", report(8.0, 2.0, 10), glimpse(0.0, 9), (9.0, 0.0)),
            ("others have filled the queue", report(8.0, 0.0, 8), glimpse(6.0, 8), (8.0, 6.0)),
            ("the queue has grown by ours", report(8.0, 2.0, 10), glimpse(4.0, 12), (8.0, 4.0)),
            ("never below zero", report(1.0, 0.0, 5), glimpse(0.0, 0), (0.0, 0.0)),
            ("never reported", InstanceReport::default(), glimpse(2.0, 6), (4.0, 2.0)),
        ];
        for (name, mut report, glimpse, (running, waiting)) in rows {
            assert!(report.glimpsed(&glimpse), "{name}");
            assert!(!report.glimpsed(&glimpse), "{name}: the second time it is no news");
            let expected =
                Load { running: Some(running), waiting: Some(waiting), kv_use: Some(0.5), ..Load::default() };
            assert_eq!(report.load, expected, "{name}");
            assert_eq!((report.at, report.own), (Some(at(101)), glimpse.own), "{name}");
            assert_eq!(report.unreachable, 0, "{name}: somebody has answered");
        }
        let mut newer = InstanceReport { at: Some(at(102)), ..report(3.0, 0.0, 3) };
        assert!(!newer.glimpsed(&glimpse(9.0, 9)));
        assert_eq!(
            newer,
            InstanceReport { at: Some(at(102)), ..report(3.0, 0.0, 3) },
            "an older glimpse changes nothing"
        );
        let mut kv_only = report(3.0, 1.0, 4);
        assert!(kv_only.glimpsed(&Glimpse { at: at(101), kv_use: Some(0.9), ..Glimpse::default() }));
        assert_eq!((kv_only.load.kv_use, kv_only.load.running, kv_only.at), (Some(0.9), Some(3.0), Some(at(100))));
        assert_eq!(Glimpse::from_load(&Load { awake: Some(true), ..Load::default() }, at(1), own(0)), None);
    }
}
