//! Gateways under any callbacks, in any order that Envoy may make them in, with what must hold whatever they are.
//!
//! An input is a list of choices: which VMs there are, with which configurations, and what happens next. VMs share a board and a clock.
//! After each callback it is checked that counters, answers, headers, bodies and records are as they must be; when everything has
//! ended, that nothing is left.

mod acts;
mod board;
mod host;
mod stories;
mod upstream;
mod vm;
mod world;

use crate::choices::Choices;
use world::World;

/// Acts of one input, at most.
const ACTS_MAX: usize = 12;

/// Does what the input says.
pub fn callbacks(data: &[u8]) {
    let mut choices = Choices::new(data);
    let mut world = World::begin(&mut choices);
    for _ in 0..ACTS_MAX {
        if choices.is_over() {
            break;
        }
        world.act(&mut choices);
    }
    world.finish();
}
