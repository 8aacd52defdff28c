//! Planning from files: what models, GPUs and prompts are, profiles measured in the simulator, plans checked there.

pub mod measure;
pub mod sample;
