//! `routebalance schema`: the schema of the configuration, for editors.

use std::io::Write as _;

use anyhow::{Context, Result};

/// The JSON Schema of `routebalance.json`.
pub const SCHEMA: &str = include_str!("../../envoy/routebalance.schema.json");

/// Prints the schema.
///
/// # Errors
/// Standard output takes nothing.
pub fn run() -> Result<()> {
    std::io::stdout().write_all(SCHEMA.as_bytes()).context("the schema cannot be written to standard output")
}
