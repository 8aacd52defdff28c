//! Planning: what a fleet should be asked to do, for a rate and a kind of requests that are known beforehand.

pub mod prices;
