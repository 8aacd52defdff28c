//! Contenders: what decides in a simulation, ours and those it is compared with. All of them see the same loads.
//!
//! A contender that chooses the model first and its instance afterwards is a **pipeline**: as none of those published looks at the
//! load to choose the model, the models of all kinds of requests are chosen before the simulation begins. A **cascade** asks several
//! models one after the other.

mod cascade;
mod dispatcher;
mod fitted;
mod forest;
mod published;

use std::sync::Arc;
use std::time::Duration;

use routebalance_core::fleet::{BatchSizing, Batching, Fleet, InstanceId, ModelId, ModelKind};
use routebalance_core::reckoning::Dispatch;
use routebalance_core::router::Decision;

pub use cascade::Cascade;
pub use dispatcher::{Dispatcher, Turns};
pub use fitted::{Fitted, PoolTimes, inputs};
pub use forest::{DEPTH, Forest, INPUTS_MAX, Inputs, SPLITS, Tree};
pub use published::{Published, Tie, Tpot};

/// An algorithm that decides.
#[derive(Clone, Debug)]
pub enum Contender {
    /// The filter's router, with the policy of each arrival.
    Ours,
    /// RouteBalance as published.
    Published(Published),
    /// A model for each kind of request, then one of its instances.
    Pipeline {
        /// Models, in the order of the workload's templates; `None` for any instance, whatever its model.
        models: Option<Arc<[ModelId]>>,
        /// How the instance is chosen.
        dispatcher: Dispatcher,
    },
    /// Models one after the other, until an answer is accepted.
    Cascade(Cascade),
}

impl Contender {
    /// A dispatcher over all instances.
    pub fn dispatch(dispatcher: Dispatcher) -> Contender {
        Contender::Pipeline { models: None, dispatcher }
    }
}

/// How long requests wait for their decisions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Deciding {
    /// Each for itself, all at the same time.
    Concurrently(Duration),
    /// One after the other.
    Serially(Duration),
    /// In batches, one after the other (RouteBalance; PUBLISHED.md, section 8): the first request is waited for, then further
    /// ones until the batch is full or its window is over; then it is decided.
    InBatches {
        /// Of a whole batch.
        time: Duration,
        /// Size and window.
        batching: Batching,
    },
}

/// Each at once, in no time.
impl Default for Deciding {
    fn default() -> Deciding {
        Deciding::Concurrently(Duration::ZERO)
    }
}

impl Deciding {
    /// The published batches.
    pub fn published(time: Duration) -> Deciding {
        Deciding::InBatches { time, batching: Batching { sizing: BatchSizing::Adaptive, max_wait: Duration::MAX } }
    }

    /// Whether requests are decided as they come.
    pub fn is_immediate(&self) -> bool {
        matches!(self, Deciding::Concurrently(time) if time.is_zero())
    }
}

/// Where a request goes.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The instance.
    pub instance: InstanceId,
    /// Where Envoy retries.
    pub fallbacks: Vec<InstanceId>,
    /// What the counters are told that the instance was given to do.
    pub dispatch: Dispatch,
    /// The limit of the answer's tokens that its budget demands.
    pub max_tokens: Option<u32>,
    /// What our router says of it.
    pub decision: Option<Box<Decision>>,
}

impl Choice {
    /// A choice of a contender that names no other instances.
    fn alone(instance: InstanceId, prompt_tokens: u32, output_tokens: f64) -> Choice {
        let dispatch =
            Dispatch { instance, prompt_tokens: u64::from(prompt_tokens), output_tokens: output_tokens as u64 };
        Choice { instance, fallbacks: Vec::new(), dispatch, max_tokens: None, decision: None }
    }
}

/// The instances that generate text, of one model or of all.
fn instances(fleet: &Fleet, model: Option<ModelId>) -> impl Iterator<Item = InstanceId> + '_ {
    fleet.instances_by_id().filter_map(move |(i, instance)| {
        let pool = fleet.pool(instance.pool)?;
        let generates = fleet.model_of(pool)?.kind == ModelKind::Generate;
        (generates && model.is_none_or(|m| m == pool.model)).then_some(i)
    })
}
