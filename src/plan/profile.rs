//! Latency profiles: what one copy of a model does under load, as measured on its own.

/// The quantiles that a profile may tell.
pub const QUANTILES: [f64; 5] = [0.5, 0.75, 0.9, 0.95, 0.99];

/// A time over all requests, milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct Times {
    /// Its mean.
    pub mean_ms: f64,
    /// Its quantiles, those of [`QUANTILES`]; `None` where nobody has measured them.
    pub quantiles_ms: Option<[f64; 5]>,
}

/// What was measured at one rate.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct Point {
    /// Requests per second that the copy got.
    pub rate: f64,
    /// Share of the time that it had work, 0 to 1.
    pub busy: f64,
    /// Time to the first token.
    pub ttft: Times,
    /// Time per output token.
    pub tpot: Times,
    /// Time to the last token.
    pub e2e: Times,
}

/// One copy of a model, by rate: at least two points at growing rates, times that do not fall with the rate.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// Index of the model.
    pub model: usize,
    /// Index of the GPU kind.
    pub kind: usize,
    /// Shards.
    pub tensor_parallel: u32,
    /// Compute that each shard may use, percent.
    pub share_percent: u32,
    /// Part of the times to the first and to the last token that no GPU takes, milliseconds: gateway, network, HTTP, tokenizer. What
    /// slows the copy down leaves it alone: slowed down by `f`, the copy takes `fixed + f (ell(f rate) - fixed)`.
    pub fixed_ms: f64,
    /// The points.
    pub points: Vec<Point>,
}
