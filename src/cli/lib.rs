//! The command line: everything with sockets, processes, clocks and a command line. They may fail, and then say why.
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

pub mod answer;
pub mod bench;
pub mod beside;
pub mod check;
pub mod crossings;
pub mod demo;
pub mod demo_view;
pub mod envoy;
pub mod envoy_binary;
pub mod evaluate;
pub mod fleet;
pub mod gateway;
pub mod image;
pub mod init;
pub mod load;
pub mod merged;
pub mod packages;
pub mod ports;
pub mod render;
pub mod rendering;
pub mod schema;
pub mod setup;
pub mod stats;
