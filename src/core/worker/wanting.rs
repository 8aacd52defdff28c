//! Pools that requests ask for and that have no instance: whoever starts instances is told.

use std::time::Duration;

use super::{Counter, Gauge, Worker};
use crate::fleet::PoolId;

/// How long a pool is wanted after a request that it could not serve.
const WANTED_FOR: Duration = Duration::from_secs(60);

impl Worker {
    /// A request has found no instance of this pool.
    pub fn lacks_instances(&mut self, pool: PoolId, now: Duration) {
        self.wanted.insert(pool, now);
        if let Some(pool) = self.router.config().fleet.pool(pool) {
            self.statistics.count(Counter::WithoutInstance { pool: &pool.name });
            self.statistics.set_anew(Gauge::WantedInstances { pool: &pool.name }, 1);
        }
    }

    /// Nobody has asked for a pool for a while.
    pub(super) fn end_wanting(&mut self, now: Duration) {
        let Worker { wanted, router, statistics, .. } = self;
        wanted.retain(|pool, at| {
            let is_wanted = now.saturating_sub(*at) < WANTED_FOR;
            if let (false, Some(pool)) = (is_wanted, router.config().fleet.pool(*pool)) {
                statistics.set_anew(Gauge::WantedInstances { pool: &pool.name }, 0);
            }
            is_wanted
        });
    }
}
