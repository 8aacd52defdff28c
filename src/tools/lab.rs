//! The lab: contenders on the same requests, in virtual time, what became of them, and a page to look at.

pub mod cell;
pub mod fit;
pub mod measured;
