//! The lab: contenders on the same requests, in virtual time, what became of them, and a page to look at.

pub mod cell;
pub mod entrant;
pub mod frontier;
pub mod measure;
pub mod page;
pub mod statistics;
pub mod summary;
pub mod targets;
