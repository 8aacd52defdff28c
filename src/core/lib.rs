//! RouteBalance for Envoy: the right model *and* the right GPU instance for every LLM request, in one decision.
//!
//! # The way of one request
//!
//! bytes -> [`openai`] (what the client fixed, and a bounded window of the text) -> [`features`] -> [`predictor`]
//! (answer quality and output tokens per model) -> candidates with their load *now* ([`reckoning`]) -> [`latency`] and cost
//! -> [`admission`] -> [`score`] -> [`router::Decision`] -> headers and rewritten body -> Envoy -> response -> reckoning.
//!
//! # The map
//!
//! | module | is |
//! |---|---|
//! | [`fleet`] | vocabulary: models, pools, instances, tariffs, weights; no behaviour |
//! | [`config`] | `routebalance.json` as written, checked into a fleet and policies, or one sentence that names the field |
//! | [`names`] | header and key names that the filter and Envoy's configuration share |
//! | [`hash`] | hashes of names and addresses, the same in every build |
//! | [`openai`] | the request fields that matter, usage of a response, error bodies; one linear scan |
//! | [`learning`] | what responses and feedback teach: corrections of lengths, beliefs about quality, exploration |
//! | [`features`] | prompt text to hashed slots and surface features; bounded work |
//! | [`predictor`] | features to estimates per model; the only module that names tract |
//! | [`discovery`] | hosts of Envoy's clusters to instances of the fleet, with indices that stay |
//! | [`telemetry`] | a `/metrics` page or a response header to a load; how often |
//! | [`random`] | seeded random numbers |
//! | [`reckoning`] | load now = last report + what was sent since - what has finished |
//! | [`shared`] | records in Envoy's shared data to types; versioned bytes, one writer per key |
//! | [`latency`] | TTFT, TPOT and E2E of a request on an instance under a load |
//! | [`affinity`] | which instance has kept a prompt's prefix, a session or an adapter |
//! | [`admission`] | candidates that keep what a request insists on, and what is given up or refused when none does |
//! | [`health`] | what responses show of an instance: less weight, ejection, probes |
//! | [`prices`] | a plan's prices of models, as they follow live load |
//! | [`score`] | objectives and the tie-break |
//! | [`router`] | the facade: request in, decision out; cannot fail |
//! | [`assign`] | requests that wait for each other, and a batch of them to instances, longest first |
//! | [`worker`] | what one VM knows and does apart from its requests: claims, counters, reports, lessons, statistics |
//! | [`gateway`] | the gateway of one VM as a value: the worker, and the phases of its requests, on whatever host |
//!
//! # Invariants
//!
//! **The core is pure.** No host, clock, random numbers or I/O: time and seeds are arguments. `proxy-wasm` is a dependency of the
//! wasi target only and sockets of native targets only, so naming the wrong thing does not compile.
//!
//! **The core cannot fail while serving.** Only [`config`] and loading the predictor return errors, and both run before the first
//! request. A missing report or a failed prediction gives a worse [`router::Decision`], on a lower rung of the ladder.
//!
//! **Nothing panics in the module.** A panic is a wasm trap and takes down every stream of that worker; the lints below deny the
//! usual ways to write one.
//!
//! **Modules form no circle.** They stand in layers (`LAYERS` in `tests/tidy.rs`), and each names those above its own only: a type
//! that two modules need lives with the one that is further in.
//!
//! **The shells hold no policy.** If a shell needs an `if` about policy, `Decision` lacks a case. The shells never name each other.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::unreachable)]
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod admission;
pub mod affinity;
pub mod assign;
pub mod config;
pub mod discovery;
pub mod features;
pub mod fleet;
pub mod gateway;
pub mod hash;
pub mod health;
pub mod latency;
pub mod learning;
pub mod names;
pub mod openai;
pub mod predictor;
pub mod prices;
pub mod random;
pub mod reckoning;
pub mod router;
pub mod score;
pub mod shared;
pub mod telemetry;
pub mod worker;
