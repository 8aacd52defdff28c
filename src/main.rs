//! The command line of RouteBalance.
fn main() {}
