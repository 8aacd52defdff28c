#![doc = include_str!("../README.md")]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::unreachable)]
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod admission;
pub mod affinity;
pub mod assign;
pub mod config;
pub mod discovery;
pub mod features;
pub mod fleet;
pub mod gateway;
pub mod hash;
pub mod health;
pub mod latency;
pub mod learning;
pub mod names;
pub mod openai;
pub mod predictor;
pub mod prices;
pub mod random;
pub mod reckoning;
pub mod router;
pub mod score;
pub mod shared;
pub mod telemetry;
pub mod worker;
