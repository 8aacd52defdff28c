//! Prices that follow demand: moved by the VM that leads, read by all.

use std::time::Duration;

use crate::config::{Config, Drill};
use crate::filter::host;
use crate::filter::worker::Worker;
use crate::prices::{LivePrices, Observation, PERIOD};
use crate::shared;

/// The VM that leads may run an older configuration, whose prices are others: after so many periods without news, whoever sees it
/// moves the prices of its own.
const PATIENCE: u32 = 4;

/// What one VM knows of the prices that follow demand.
pub(super) struct Prices {
    /// Where they are shared; `None` if no policy has any.
    key: Option<String>,
    fingerprint: u64,
    /// Version of the shared record that was read last.
    version: Option<u32>,
    live: LivePrices,
}

impl Prices {
    pub(super) fn new(config: &Config) -> Prices {
        let fingerprint = shared::prices_fingerprint(&config.fleet, &config.policies);
        let wanted = LivePrices::are_wanted(&config.policies) && !config.drills(Drill::SharedData);
        let key = wanted.then(|| shared::prices_key(shared::group(fingerprint)));
        Prices { key, fingerprint, version: None, live: LivePrices::default() }
    }

    /// What a policy's models cost now; `None` for what the policy says.
    pub(super) fn of(&self, policy: usize) -> Option<&[f64]> {
        self.live.of(policy)
    }
}

impl Worker {
    /// Reads the prices, and moves them if that is due.
    pub(super) fn follow_prices(&mut self, now: Duration) {
        let Some(key) = self.prices.key.clone() else { return };
        let (bytes, version) = host::shared(&key);
        if version != self.prices.version || version.is_none() {
            let config = self.router.config();
            let read = bytes.as_deref().and_then(|bytes| {
                shared::decode_prices(bytes, &config.fleet, &config.policies, self.prices.fingerprint)
            });
            // The clock may have been set back.
            let read = read.filter(|prices| prices.at <= now.saturating_add(PERIOD));
            self.prices.version = version;
            match read {
                Some(read) => self.prices.live = read,
                // Of another configuration: one's own go on.
                None if self.prices.live.at <= now.saturating_add(PERIOD) => {}
                None => self.prices.live = LivePrices::default(),
            }
        }
        let periods = if self.leads { 1 } else { PATIENCE };
        if now.saturating_sub(self.prices.live.at) < PERIOD.saturating_mul(periods) {
            return;
        }
        let counters = self.all_counters();
        let loads = self.loads_by(&counters, now, 0.5);
        let config = self.router.config();
        let seen = Observation::of(&config.fleet, &counters, &loads, &self.learner.learned().speeds);
        let mut moved = self.prices.live.clone();
        moved.step(&config.policies, &seen, now);
        // Another VM may have been faster: then its prices are read in the next tick.
        if host::set_shared(&key, &shared::encode_prices(&moved, self.prices.fingerprint), version) {
            self.prices.live = moved;
            self.show_prices();
        }
    }

    fn show_prices(&mut self) {
        let Worker { router, metrics, prices, .. } = self;
        let config = router.config();
        for (policy, steering) in config.policies.iter().zip(&prices.live.policies) {
            let Some(steering) = steering else { continue };
            for (model, price) in config.fleet.models.iter().zip(&steering.prices) {
                let micro = (price * 1e6).round() as u64;
                metrics.set(&format!("routebalance.price_micro.{}.{}", policy.name, model.name), micro);
            }
            let milli = (steering.surcharge * 1e3).round() as u64;
            metrics.set(&format!("routebalance.surcharge_milli.{}", policy.name), milli);
        }
    }
}
