//! Prices that follow demand: moved by the VM that leads, read by all.

use std::time::Duration;

use super::{Gauge, Worker};
use crate::config::{Config, Drill};
use crate::fleet::PolicyId;
use crate::prices::{LivePrices, Observation, PERIOD};
use crate::shared::{self, Board, Key, Version};

/// What one VM knows of the prices that follow demand.
#[derive(Clone, Debug, Default)]
pub struct Prices {
    /// Whether any policy has some.
    are_wanted: bool,
    fingerprint: u64,
    /// Version of the shared record that was read last.
    version: Option<Version>,
    live: LivePrices,
}

impl Prices {
    pub(super) fn new(config: &Config) -> Prices {
        let fingerprint = shared::prices_fingerprint(&config.fleet, &config.policies);
        let are_wanted = LivePrices::are_wanted(&config.policies) && !config.drills(Drill::SharedData);
        Prices { are_wanted, fingerprint, ..Prices::default() }
    }

    /// What a policy's models cost now; `None` for what the policy says.
    pub fn of_policy(&self, policy: PolicyId) -> Option<&[f64]> {
        self.live.of_policy(policy)
    }

    /// The prices of all policies.
    pub fn live(&self) -> &LivePrices {
        &self.live
    }
}

impl Worker {
    /// Reads the prices, and moves them if that is due.
    pub(super) fn follow_prices(&mut self, board: &mut impl Board, now: Duration) {
        let Some(place) = self.place.filter(|_| self.prices.are_wanted) else { return };
        let (bytes, version) = board.read(Key::Prices(place));
        if version != self.prices.version || version.is_none() {
            self.prices.version = version;
            match bytes.and_then(|bytes| self.read_prices(&bytes, now)) {
                Some(read) => self.prices.live = read,
                // Another configuration's: those of one with the same plan go on.
                None if self.prices.live == LivePrices::default() => self.prices.live = self.earlier_prices(board, now),
                None => {}
            }
        }
        if !self.leads || now.saturating_sub(self.prices.live.at) < PERIOD {
            return;
        }
        let counters = self.all_counters(board);
        let loads = self.loads_by(board, &counters, now, 0.5);
        let config = self.router.config();
        let seen = Observation::from_fleet(&config.fleet, &counters, &loads, &self.learner.learned().speeds);
        let mut moved = self.prices.live.clone();
        moved.step(&config.policies, &seen, now);
        // Another VM may have been faster: then its prices are read in the next tick.
        if board.write(Key::Prices(place), &shared::encode_prices(&moved, self.prices.fingerprint), version) {
            self.prices.live = moved;
            self.show_prices();
        }
    }

    fn read_prices(&self, bytes: &[u8], now: Duration) -> Option<LivePrices> {
        let config = self.router.config();
        let read = shared::decode_prices(bytes, &config.fleet, &config.policies, self.prices.fingerprint);
        // The clock may have been set back.
        read.filter(|prices| prices.at <= now.saturating_add(PERIOD))
    }

    /// The latest prices of another configuration with the same plan: a reload goes on with them.
    fn earlier_prices(&self, board: &impl Board, now: Duration) -> LivePrices {
        let places = 0..self.slots.places().len();
        let read = places.filter_map(|place| self.read_prices(&board.read(Key::Prices(place)).0?, now));
        read.max_by_key(|prices| prices.at).unwrap_or_default()
    }

    fn show_prices(&mut self) {
        let Worker { router, statistics, prices, .. } = self;
        if statistics.is_mute() {
            return;
        }
        let config = router.config();
        for (policy, steering) in config.policies.iter().zip(&prices.live.policies) {
            let Some(steering) = steering else { continue };
            for (model, price) in config.fleet.models.iter().zip(&steering.prices) {
                let micro = (price * 1e6).round() as u64;
                statistics.set(Gauge::PriceMicro { policy: &policy.name, model: &model.name }, micro);
            }
            let milli = (steering.surcharge * 1e3).round() as u64;
            statistics.set(Gauge::SurchargeMilli { policy: &policy.name }, milli);
        }
    }
}
