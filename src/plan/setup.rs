//! Setups: how every model is deployed, and all of a problem's setups.

use super::problem::Problem;

#[cfg(test)]
pub(super) mod tests;

/// Compute of one GPU, percent.
pub const GPU_PERCENT: u32 = 100;

/// How one model is deployed: so many copies, each of so many shards, each with a share of a GPU of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Choice {
    /// Index of the GPU kind, of all copies.
    pub kind: usize,
    /// Shards of a copy, each on another GPU (tensor parallelism).
    pub tensor_parallel: u32,
    /// Compute of a GPU that each shard may use, percent: a cap (NVIDIA MPS active threads), not a reservation.
    pub share_percent: u32,
    /// Copies; 0 for a model that is not deployed, whose other fields are 0.
    pub replicas: u32,
}

impl Choice {
    /// The model is not deployed.
    pub const NONE: Choice = Choice { kind: 0, tensor_parallel: 0, share_percent: 0, replicas: 0 };

    /// Compute of all shards of all copies, percent of a GPU.
    pub fn compute_percent(&self) -> u32 {
        self.tensor_parallel.saturating_mul(self.share_percent).saturating_mul(self.replicas)
    }
}

/// One choice per model, in the order of the problem's models.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Setup(pub Vec<Choice>);

/// Where the shards of a setup are: `gpus[model][copy]` lists the GPU of each shard. GPUs are numbered over all kinds, in the
/// order of the problem.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Placement {
    /// GPUs by model, copy and shard.
    pub gpus: Vec<Vec<Vec<usize>>>,
}

impl Placement {
    /// Whether each GPU of the problem has a shard, in the order of the GPUs.
    pub fn used(&self, problem: &Problem) -> Vec<bool> {
        let mut used = vec![false; problem.kinds.iter().map(|kind| kind.count).sum()];
        for gpu in self.gpus.iter().flatten().flatten() {
            if let Some(used) = used.get_mut(*gpu) {
                *used = true;
            }
        }
        used
    }

    /// What the GPUs that have a shard cost together, USD per hour.
    pub fn usd_per_hour(&self, problem: &Problem) -> f64 {
        let usd = problem.kinds.iter().flat_map(|kind| std::iter::repeat_n(kind.usd_per_hour, kind.count));
        self.used(problem).into_iter().zip(usd).map(|(used, usd)| if used { usd } else { 0.0 }).sum()
    }
}

/// All ways to deploy one model that the problem's space lists, each once: by kind, shards, share and replicas, in the order of the
/// space; [`Choice::NONE`] first where the model may be left out.
pub fn choices(problem: &Problem) -> Vec<Choice> {
    let space = &problem.space;
    let mut all: Vec<Choice> = space.replicas.contains(&0).then_some(Choice::NONE).into_iter().collect();
    for kind in 0..problem.kinds.len() {
        for &tensor_parallel in space.tensor_parallel.iter().filter(|tp| **tp > 0) {
            for &share_percent in space.shares_percent.iter().filter(|share| **share > 0) {
                for &replicas in space.replicas.iter().filter(|replicas| **replicas > 0) {
                    all.push(Choice { kind, tensor_parallel, share_percent, replicas });
                }
            }
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    all.retain(|choice| seen.insert(*choice));
    all
}

/// All setups whose shards use together between `compute_min` and all of the GPUs' compute, of each kind at most what it has, with
/// at least one model deployed (RouterWise, algorithm 3, step 1; PUBLISHED.md, section 18.3). Whether they have a placement is not looked
/// at.
///
/// Lexicographic in the order of the choices. Beginnings that no further choices bring into the window are left out at once.
#[derive(Clone, Debug)]
pub struct Setups {
    choices: Vec<Vec<Choice>>,
    /// Compute of each kind, percent of a GPU.
    rooms: Vec<u32>,
    /// The window, percent of a GPU.
    least: u32,
    most: u32,
    /// By number of models that have chosen: how many of the sums up to each one the others reach together.
    reached: Vec<Vec<u32>>,
    /// The beginning.
    chosen: Vec<Choice>,
    /// Of the beginning: compute by kind, and of all, percent.
    used: Vec<u32>,
    total: u32,
    /// The next choice to try, by model, up to the one whose turn it is.
    cursors: Vec<usize>,
}

/// Rounding of `compute_min` that is not held against a setup, percent of a GPU.
const ROUNDING_PERCENT: f64 = 1e-6;

impl Setups {
    /// All of the problem's setups.
    pub fn new(problem: &Problem) -> Setups {
        Setups::among(problem, vec![choices(problem); problem.models.len()])
    }

    /// Those in which each model has one of these choices (one list per model), for callers who know which choices are of no use.
    pub fn among(problem: &Problem, choices: Vec<Vec<Choice>>) -> Setups {
        let percent = |gpus: usize| u32::try_from(gpus).unwrap_or(u32::MAX).saturating_mul(GPU_PERCENT);
        let rooms: Vec<u32> = problem.kinds.iter().map(|kind| percent(kind.count)).collect();
        let most = rooms.iter().fold(0_u32, |sum, room| sum.saturating_add(*room));
        let least = (problem.space.compute_min * f64::from(most) - ROUNDING_PERCENT).ceil().max(1.0) as u32;
        let mut reached = vec![reach(std::iter::once(0), &[Choice::NONE], most)];
        for of_model in choices.iter().rev() {
            let later = sums(reached.last().map_or(&[], Vec::as_slice));
            reached.push(reach(later.into_iter(), of_model, most));
        }
        reached.reverse();
        let cursors = if choices.is_empty() { vec![] } else { vec![0] };
        Setups { choices, used: vec![0; rooms.len()], rooms, least, most, reached, chosen: vec![], total: 0, cursors }
    }

    /// Whether the choice leaves room, and later ones can still reach the window.
    fn may_choose(&self, choice: &Choice) -> bool {
        let compute = choice.compute_percent();
        let room = |kind: usize| {
            let room = self.rooms.get(kind).copied().unwrap_or(0);
            room.saturating_sub(self.used.get(kind).copied().unwrap_or(0))
        };
        let total = self.total.saturating_add(compute);
        if compute > room(choice.kind) || total > self.most {
            return false;
        }
        let Some(reached) = self.reached.get(self.chosen.len().saturating_add(1)) else { return false };
        let upto = |sum: u32| reached.get(sum as usize).copied().unwrap_or(0);
        let below = self.least.saturating_sub(total).checked_sub(1).map_or(0, upto);
        upto(self.most.saturating_sub(total)) > below
    }

    fn choose(&mut self, choice: Choice) {
        self.total = self.total.saturating_add(choice.compute_percent());
        if let Some(used) = self.used.get_mut(choice.kind) {
            *used = used.saturating_add(choice.compute_percent());
        }
        self.chosen.push(choice);
        self.cursors.push(0);
    }

    fn go_back(&mut self) {
        self.cursors.pop();
        let Some(choice) = self.chosen.pop() else { return };
        self.total = self.total.saturating_sub(choice.compute_percent());
        if let Some(used) = self.used.get_mut(choice.kind) {
            *used = used.saturating_sub(choice.compute_percent());
        }
    }
}

/// How many sums up to each one are reached by adding a choice to one of those given.
fn reach(later: impl Iterator<Item = u32>, choices: &[Choice], most: u32) -> Vec<u32> {
    let computes: std::collections::BTreeSet<u32> = choices.iter().map(Choice::compute_percent).collect();
    let mut is_reached = vec![0_u32; most.saturating_add(1) as usize];
    for sum in later {
        for compute in &computes {
            if let Some(reached) = is_reached.get_mut(sum.saturating_add(*compute) as usize) {
                *reached = 1;
            }
        }
    }
    let count = |count: &mut u32, reached: u32| {
        *count = count.saturating_add(reached);
        Some(*count)
    };
    is_reached.into_iter().scan(0, count).collect()
}

/// The sums that are reached, of how many are up to each one.
fn sums(reached: &[u32]) -> Vec<u32> {
    let before = std::iter::once(&0).chain(reached);
    (0..).zip(reached.iter().zip(before)).filter(|(_, (upto, before))| upto > before).map(|(sum, _)| sum).collect()
}

impl Iterator for Setups {
    type Item = Setup;

    fn next(&mut self) -> Option<Setup> {
        loop {
            let cursor = self.cursors.last_mut()?;
            let level = self.chosen.len();
            let Some(choice) = self.choices.get(level).and_then(|of_model| of_model.get(*cursor)).copied() else {
                self.go_back();
                continue;
            };
            *cursor = cursor.saturating_add(1);
            if !self.may_choose(&choice) {
                continue;
            }
            if level.saturating_add(1) == self.choices.len() {
                return Some(Setup(self.chosen.iter().copied().chain([choice]).collect()));
            }
            self.choose(choice);
        }
    }
}
