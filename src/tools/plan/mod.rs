//! Plans: what they are compared with.

pub mod rivals;
