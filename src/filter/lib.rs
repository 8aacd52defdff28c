//! The shell inside Envoy: wasi only, and the only place that names `proxy_wasm`. It translates Envoy's callbacks for the gateway and does
//! what that says; it holds no policy.
#![cfg(target_os = "wasi")]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::unreachable)]
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]
#![allow(missing_docs, reason = "what `proxy_wasm::main!` writes has no documentation")]
#![allow(clippy::disallowed_types, reason = "the host's random numbers come from a hasher's state")]
#![allow(clippy::disallowed_methods, reason = "the host's clock is read here, and handed to the core")]

mod ahead;
mod attempt;
mod envoy;
mod host;
mod root;
mod shared;
mod stream;

use proxy_wasm::types::LogLevel;

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Info);
    std::panic::set_hook(Box::new(|info| log::error!("routebalance: {info}")));
    proxy_wasm::set_root_context(|id| Box::new(root::Root::new(id)));
}}
