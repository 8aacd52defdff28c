//! Virtual time: the engine behind the emulated instances. Clocks and seeds are arguments.

pub mod engine;
