//! The published predictor of times: trees for each pool, on what an instance reports and what a request asks for (RouteBalance;
//! PUBLISHED.md, section 4.2).

use super::forest::{Forest, Inputs};
use crate::engine::{BLOCK_TOKENS, MAX_BATCHED_TOKENS};
use routebalance_core::fleet::Pool;
use routebalance_core::latency::Residuals;
use routebalance_core::reckoning::LoadNow;

/// The 25 inputs in the published order: 17 of the instance's state, the request's tokens, and what follows from them.
///
/// What reports do not have is 0: the engine's moving averages (1 in ratios), the contexts of what decodes (95th percentile 1 in the
/// ratio), evictions. So it was at the published serving time too, where nobody computed the averages (PUBLISHED.md, section 4.2, "skew").
pub fn inputs(pool: &Pool, load: &LoadNow, prompt_tokens: f64, output_tokens: f64) -> Inputs {
    let (p, o) = (prompt_tokens, output_tokens);
    let used = load.kv_use.unwrap_or(0.0);
    let free_blocks = (1.0 - used) * pool.limits.kv_tokens as f64 / f64::from(BLOCK_TOKENS);
    let step_tokens = f64::from(MAX_BATCHED_TOKENS);
    let state = [
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
        load.running,
        load.running,
        load.waiting,
        load.pending_prompt_tokens,
        load.pending_output_tokens,
        step_tokens,
        step_tokens,
        f64::from(pool.limits.max_running),
        used,
        free_blocks,
        0.0,
    ];
    let request = [p, o, p + (o - 1.0) / 2.0, p + o - 1.0];
    let ratios = [load.pending_prompt_tokens + load.pending_output_tokens, p, o, p + o - 1.0];
    let mut all = Inputs::default();
    for (input, value) in all.iter_mut().zip(state.into_iter().chain(request).chain(ratios)) {
        *input = value as f32;
    }
    all
}

/// The predictors of one pool.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolTimes {
    /// Milliseconds per output token.
    pub tpot_ms: Forest,
    /// Milliseconds to the first token: trained and distributed with the published code, which reads a constant instead.
    pub ttft_ms: Forest,
    /// Actual over predicted times to the first token and per output token, on rows that the trees were not grown on.
    pub residuals: (Residuals, Residuals),
    /// Standard deviations of the two on those rows, seconds.
    pub sd: (f64, f64),
}

/// What the published predictor has learnt of a fleet.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fitted {
    /// By pool; `None` for one that generates nothing.
    pub pools: Vec<Option<PoolTimes>>,
}

impl Fitted {
    /// The predictors of a pool.
    pub fn pool(&self, pool: usize) -> Option<&PoolTimes> {
        self.pools.get(pool)?.as_ref()
    }
}
