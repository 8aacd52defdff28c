//! Fuzzing.
fn main() {}
