//! The shell inside Envoy: wasi only, and the only place that names `proxy_wasm`. It reads, calls the router, and does what the
//! decision says; it holds no policy.
#![allow(clippy::disallowed_types, reason = "the host's random numbers come from a hasher's state")]

mod access_log;
mod answering;
mod attempt;
mod batching;
mod debug;
mod deciding;
mod feedback;
mod health;
mod host;
mod local;
mod rerun;
mod root;
mod serving;
mod stream;
mod worker;

use proxy_wasm::types::LogLevel;

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Info);
    std::panic::set_hook(Box::new(|info| log::error!("routebalance: {info}")));
    proxy_wasm::set_root_context(|id| Box::new(root::Root::new(id)));
}}
