//! Placements: on which GPUs the shards of a setup are.
//!
//! [`first_fit_decreasing`] is the paper's, which looks at memory alone; [`place`] is exact, and looks at the shards' caps too.

use super::problem::Problem;
use super::setup::{Placement, Setup, Setups};
use search::Search;

mod search;
#[cfg(test)]
mod tests;

/// One copy of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ModelCopy {
    model: usize,
    copy: usize,
    shards: usize,
    /// Memory of a shard, kB: whole numbers have the same sum in every order.
    kb: u64,
    /// Compute that a shard may use, percent.
    cap: u32,
}

/// GB (1e9 bytes) in kB (1e3 bytes), to the nearest.
fn kilobytes(gb: f64) -> u64 {
    (gb * 1e6).round() as u64
}

/// The copies on one kind of GPU, with how many there are, the first of them and their memory in kB.
struct OfKind {
    copies: Vec<ModelCopy>,
    count: usize,
    first: usize,
    kb: u64,
}

/// The setup's copies by kind, in the order of models and copies; `None` if a kind does not exist.
fn by_kind(problem: &Problem, setup: &Setup) -> Option<Vec<OfKind>> {
    let mut first = 0_usize;
    let mut kinds: Vec<OfKind> = vec![];
    for kind in &problem.kinds {
        kinds.push(OfKind { copies: vec![], count: kind.count, first, kb: kilobytes(kind.memory_gb) });
        first = first.saturating_add(kind.count);
    }
    for (model, (planned, choice)) in problem.models.iter().zip(&setup.0).enumerate() {
        let kb = kilobytes(problem.memory.shard_gb(planned, choice.tensor_parallel));
        for copy in 0..choice.replicas as usize {
            let shards = choice.tensor_parallel as usize;
            kinds.get_mut(choice.kind)?.copies.push(ModelCopy { model, copy, shards, kb, cap: choice.share_percent });
        }
    }
    Some(kinds)
}

/// A placement without any shard, with a place for each copy.
fn empty(setup: &Setup) -> Placement {
    Placement { gpus: setup.0.iter().map(|choice| vec![vec![]; choice.replicas as usize]).collect() }
}

impl Placement {
    fn put(&mut self, copy: &ModelCopy, gpu: usize) {
        if let Some(gpus) = self.gpus.get_mut(copy.model).and_then(|copies| copies.get_mut(copy.copy)) {
            gpus.push(gpu);
        }
    }

    fn has(&self, copy: &ModelCopy, gpu: usize) -> bool {
        self.gpus.get(copy.model).and_then(|copies| copies.get(copy.copy)).is_some_and(|gpus| gpus.contains(&gpu))
    }
}

/// The paper's placement (RouterWise, algorithm 3, step 2; PUBLISHED.md, section 18.3): shards by memory, most first, and each to the first
/// GPU that has memory for it and no other shard of the same copy; `None` if there is none. Caps are not looked at.
///
/// Shards of equal memory go in the order of models, copies and shards, each to the GPUs of its kind, in their order.
pub fn first_fit_decreasing(problem: &Problem, setup: &Setup) -> Option<Placement> {
    let mut placement = empty(setup);
    for mut kind in by_kind(problem, setup)? {
        kind.copies.sort_by_key(|copy| std::cmp::Reverse(copy.kb));
        let mut free = vec![kind.kb; kind.count];
        let shards = kind.copies.iter().flat_map(|copy| std::iter::repeat_n(copy, copy.shards));
        for copy in shards {
            let gpus = (kind.first..).zip(free.iter_mut());
            let (gpu, room) = gpus.into_iter().find(|(gpu, room)| **room >= copy.kb && !placement.has(copy, *gpu))?;
            *room = room.saturating_sub(copy.kb);
            placement.put(copy, gpu);
        }
    }
    Some(placement)
}

/// Every shard on a GPU of its own; `None` if there are too few, or one shard is too large.
pub fn isolated(problem: &Problem, setup: &Setup) -> Option<Placement> {
    let mut placement = empty(setup);
    for kind in by_kind(problem, setup)? {
        let mut gpus = kind.first..kind.first.saturating_add(kind.count);
        for copy in &kind.copies {
            for _ in 0..copy.shards {
                let gpu = gpus.next().filter(|_| copy.kb <= kind.kb)?;
                placement.put(copy, gpu);
            }
        }
    }
    Some(placement)
}

/// What a placement is chosen for, among those that fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Prefer {
    /// The first that is found.
    Any,
    /// Least interference, then the fewest GPUs.
    Speed,
    /// The fewest GPUs, then least interference.
    Money,
}

/// The best placement within the GPUs' memory, with caps of at most 100 % together on each unless the space lets them
/// oversubscribe; `None` if there is none. Shards of a copy are on different GPUs; copies of a model may share them.
///
/// Best is, where the goal is score, the least interference (the largest sum of caps of one shard's company on a GPU) and then the
/// fewest GPUs; where money counts, the fewest GPUs of each kind first. Exact, by branch and bound, for setups of one copy per model
/// as in the paper's spaces. With very many copies the search may run out of steps, whose number is bounded: then the placement is
/// the best so far, which may be less than the best, or none.
pub fn place(problem: &Problem, setup: &Setup) -> Option<Placement> {
    use super::problem::Goal;
    let prefer = if problem.goal == Goal::Score { Prefer::Speed } else { Prefer::Money };
    searched(problem, setup, !problem.space.oversubscribe, prefer)
}

fn searched(problem: &Problem, setup: &Setup, caps: bool, prefer: Prefer) -> Option<Placement> {
    let mut placement = empty(setup);
    for kind in by_kind(problem, setup)? {
        let found = Search::new(kind.copies, kind.count, kind.kb, caps, prefer).run()?;
        for (copy, gpu) in found {
            placement.put(&copy, kind.first.saturating_add(gpu));
        }
    }
    placement.gpus.iter_mut().flatten().for_each(|gpus| gpus.sort_unstable());
    Some(placement)
}

/// How many setups a problem has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Counts {
    /// In the space, before any look at memory.
    pub enumerated: usize,
    /// With a placement by [`first_fit_decreasing`].
    pub memory: usize,
    /// With a placement whose caps are at most 100 % together on every GPU.
    pub caps: usize,
}

/// Counts the problem's setups; whether the space lets caps oversubscribe does not matter.
pub fn count(problem: &Problem) -> Counts {
    let mut counts = Counts::default();
    for setup in Setups::new(problem) {
        counts.enumerated = counts.enumerated.saturating_add(1);
        let memory = first_fit_decreasing(problem, &setup).is_some();
        counts.memory = counts.memory.saturating_add(usize::from(memory));
        let caps = searched(problem, &setup, true, Prefer::Any).is_some();
        counts.caps = counts.caps.saturating_add(usize::from(caps));
    }
    counts
}
