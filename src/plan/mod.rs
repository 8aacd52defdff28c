//! Planning: what a fleet should be asked to do, for a rate and a kind of requests that are known beforehand (RouterWise, arXiv
//! 2604.10907, and beyond it).
//!
//! [`problem`] says what is wanted, [`profile`] what is known of latency, [`scores`] of quality. [`setup`] enumerates ways to deploy
//! the models, [`placement`] puts shards on GPUs, [`interference`] says how they slow each
//! other down, [`baselines`] are simple rules to compare with, `solve` finds the best routing of one setup and `search` the best setup. [`prices`]
//! are what makes a router follow a plan. Pure: the tools read files, draw pages and run plans in the simulator.

pub mod baselines;
pub mod interference;
pub mod placement;
pub mod prices;
pub mod problem;
pub mod profile;
pub mod scores;
pub mod setup;
pub mod solution;
