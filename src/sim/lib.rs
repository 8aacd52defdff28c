//! Virtual time: a fleet of engines behind gateways that decide with the same router as the filter. Clocks and seeds are
//! arguments.
//!
//! [`simulation`] is the loop over events; [`gateway`] and [`server`] are what it moves requests between; [`workload`] says what
//! is asked for, [`fault`] what goes wrong, [`outcome`] what became of it. [`scenarios`] draws small fleets where something goes
//! wrong and says what must hold then; [`sharing`] says which instances share GPUs; [`statistics`] are means and percentiles;
//! [`contender`]s are algorithms that decide, [`filters`] published filters to compare with.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::unreachable)]
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod contender;
pub mod engine;
pub mod fault;
pub mod filters;
pub mod gateway;
pub mod outcome;
pub mod scenarios;
pub mod server;
pub mod sharing;
pub mod simulation;
pub mod statistics;
pub mod workload;

#[cfg(test)]
mod against_engine;
