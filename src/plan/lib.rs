//! Planning: what a fleet should be asked to do, for a rate and a kind of requests that are known beforehand (RouterWise, arXiv
//! 2604.10907, and beyond it).
//!
//! [`problem`] says what is wanted, [`profile`] what is known of latency, [`scores`] of quality. [`setup`] enumerates ways to deploy
//! the models, [`placement`] puts shards on GPUs, [`interference`] says how they slow each other down, [`baselines`] and [`published`]
//! are what it is compared with, `solve` finds the best routing of one setup and [`search`] the best setup. [`device`] guesses what
//! nobody has measured. [`prices`] are what makes a router follow a plan; [`routebalance_core::prices`] makes them follow live load. Pure: the tools
//! read files, draw pages and run plans in the simulator.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::unreachable)]
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod baselines;
mod curve;
pub mod device;
pub mod interference;
pub mod placement;
pub mod prices;
pub mod problem;
pub mod profile;
pub mod published;
pub mod scores;
pub mod search;
pub mod setup;
mod simplex;
pub mod solution;
mod solve;
