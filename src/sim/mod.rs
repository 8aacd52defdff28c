//! Virtual time, seeded: the engine behind the emulated instances.
pub mod engine;
