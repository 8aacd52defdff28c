//! Plans: what they are compared with.

pub mod comparison;
pub mod rivals;
