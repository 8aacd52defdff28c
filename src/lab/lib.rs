//! The lab: contenders on the same requests, in virtual time, what became of them, and a page to look at.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::unreachable,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tools run on the host, where a panic ends one command and clocks are real"
)]

pub mod access_log;
pub mod builtin;
pub mod cell;
pub mod contenders;
pub mod entrant;
pub mod evaluate;
pub mod fit;
pub mod frontier;
pub mod ground;
pub mod lines;
pub mod measure;
pub mod opinions;
mod outlook;
pub mod page;
pub mod pairing;
pub mod planning;
pub mod presets;
pub mod prompts;
pub mod recordings;
pub mod reproduction;
pub mod resume;
pub mod run;
pub mod source;
pub mod statistics;
pub mod summary;
pub mod targets;
pub mod trace;

/// The repository: tests read recordings of it.
#[cfg(test)]
fn package_root() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}
