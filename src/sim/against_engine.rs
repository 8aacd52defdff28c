//! What the core promises of its forecasts, its prices and its affinity, held against the engine.

mod latency;
mod prices;
mod spiral;
