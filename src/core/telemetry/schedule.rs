//! How often instances are asked: as configured, or less often where their pages are too much for one worker.

use std::time::Duration;

use super::TelemetrySettings;

/// Bytes of metrics pages that one worker parses in a second. A vLLM page has 55 KB, so 1,000 instances are asked every 5.5 s.
const BYTES_PER_SECOND_MAX: u64 = 10_000_000;
/// A page whose size nobody has seen yet, bytes: vLLM 0.32's.
const PAGE_BYTES: u64 = 55_000;
/// Scrapes under way at once.
pub const IN_FLIGHT_MAX: usize = 64;
/// A report is fully trusted for at least so many periods, and not at all only after so many.
const FRESH_PERIODS: u32 = 2;
const MAX_AGE_PERIODS: u32 = 10;

/// When instances are scraped, from the sizes of the pages that they have sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    pages: u64,
    bytes: u64,
}

impl Schedule {
    /// A page of this size was parsed. Later ones count more.
    pub fn parsed(&mut self, bytes: usize) {
        if self.pages >= 1_024 {
            self.pages /= 2;
            self.bytes /= 2;
        }
        self.pages = self.pages.saturating_add(1);
        self.bytes = self.bytes.saturating_add(bytes as u64);
    }

    /// Time between two scrapes of one instance: the configured one, or the one in which all pages can be parsed.
    pub fn period(&self, telemetry: &TelemetrySettings, instances: usize) -> Duration {
        let page = self.bytes.checked_div(self.pages).unwrap_or(PAGE_BYTES);
        let bytes = page.saturating_mul(instances as u64);
        let needed = Duration::from_micros(bytes.saturating_mul(1_000_000) / BYTES_PER_SECOND_MAX);
        telemetry.scrape_period.max(needed)
    }
}

/// Whose turn it is: round after round through all instances, at an even pace, so that a round takes a period and no tick
/// is busier than another. A limit on what is under way makes rounds longer, never bursts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rounds {
    cursor: usize,
    /// Turns that are due, with their fraction.
    due: f64,
    looked_at: Option<Duration>,
}

impl Rounds {
    /// The instances whose turn has come since the last call, at most `room` of them.
    pub fn turns(&mut self, now: Duration, period: Duration, instances: usize, room: usize) -> Vec<usize> {
        // Whoever begins, or has paused, asks all: what is known is as old as nobody has asked.
        let since = self.looked_at.map_or(period, |at| now.saturating_sub(at)).min(period);
        self.looked_at = Some(now);
        let rounds = since.as_secs_f64() / period.as_secs_f64().max(1e-3);
        // Turns missed while there was no room are not made up for beyond one round.
        self.due = (self.due + rounds * instances as f64).min(instances as f64);
        let turns = (self.due.floor() as usize).min(room).min(instances);
        self.due -= turns as f64;
        let first = self.cursor;
        self.cursor = first.saturating_add(turns).checked_rem(instances).unwrap_or(0);
        (0..turns).filter_map(|turn| first.saturating_add(turn).checked_rem(instances)).collect()
    }
}

/// How reports that come this seldom are trusted: fully for at least two periods, and to the tenth at least a little.
pub fn stretched(telemetry: &TelemetrySettings, period: Duration) -> TelemetrySettings {
    TelemetrySettings {
        fresh: telemetry.fresh.max(period.saturating_mul(FRESH_PERIODS)),
        max_age: telemetry.max_age.max(period.saturating_mul(MAX_AGE_PERIODS)),
        ..telemetry.clone()
    }
}
