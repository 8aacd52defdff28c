//! The lab: contenders on the same requests, in virtual time, what became of them, and a page to look at.

pub mod access_log;
pub mod builtin;
pub mod cell;
pub mod contenders;
pub mod entrant;
pub mod fit;
pub mod frontier;
pub mod lines;
pub mod measure;
pub mod opinions;
mod outlook;
pub mod page;
pub mod pairing;
pub mod prompts;
pub mod recordings;
pub mod source;
pub mod statistics;
pub mod summary;
pub mod targets;
pub mod trace;
