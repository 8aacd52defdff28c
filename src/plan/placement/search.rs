//! The search for the best placement on the GPUs of one kind.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use super::{ModelCopy, Prefer};
use crate::setup::GPU_PERCENT;

/// Shards that are tried on a GPU before the search for the first placement ends.
pub(super) const STEPS_MAX: usize = 50_000;
/// Shards that are tried for a better placement.
const STEPS_BETTER: usize = 5_000;

/// What is on a GPU: all that matters to shards that come later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Gpu {
    /// Memory in use, kB.
    kb: u64,
    /// Caps of the shards together, percent.
    cap: u32,
    /// The least of the caps; the most there is on an empty GPU.
    least: u32,
}

const EMPTY: Gpu = Gpu { kb: 0, cap: 0, least: u32::MAX };

impl Gpu {
    fn holding(self, copy: &ModelCopy) -> Gpu {
        let (kb, cap) = (self.kb.saturating_add(copy.kb), self.cap.saturating_add(copy.cap));
        Gpu { kb, cap, least: self.least.min(copy.cap) }
    }

    /// The largest sum of caps of one shard's company.
    fn company(&self) -> u32 {
        self.cap.saturating_sub(self.least)
    }
}

/// What is to be as little as possible: GPUs and company, in the order of the preference.
type Cost = (u32, u32);

/// Copies are placed one after the other, the largest first. Of GPUs with the same on them only the first is tried, and of states
/// that differ only in which GPU is which, or in the order of copies, only the first is followed: what came of it cannot be bettered.
pub(super) struct Search {
    copies: Vec<ModelCopy>,
    kb: u64,
    caps: bool,
    prefer: Prefer,
    /// By how many copies are placed: caps of all shards of the others, and the set of sums up to 100 % that one GPU can get of
    /// them, which is one shard of each at most.
    later: Vec<(u32, u128)>,
    /// The search ends at a placement of this cost.
    least: Cost,
    /// No placement has less company than this.
    least_company: u32,
    gpus: Vec<Gpu>,
    /// GPUs of the shards so far, copy after copy.
    chosen: Vec<usize>,
    best: Option<(Cost, Vec<usize>)>,
    steps: usize,
    seen: BTreeSet<(usize, Vec<Gpu>)>,
}

/// A reason to end the search.
struct Ended;

impl Search {
    pub(super) fn new(mut copies: Vec<ModelCopy>, count: usize, kb: u64, caps: bool, prefer: Prefer) -> Search {
        let size =
            |copy: &ModelCopy| (copy.kb as f64 / kb.max(1) as f64).max(f64::from(copy.cap) / f64::from(GPU_PERCENT));
        copies.sort_by(|a, b| size(b).total_cmp(&size(a)).then(b.shards.cmp(&a.shards)));
        let mut later = vec![(0_u32, 1_u128)];
        for copy in copies.iter().rev() {
            let (all, sums) = later.last().copied().unwrap_or((0, 1));
            let sums = sums | sums.checked_shl(copy.cap).unwrap_or(0);
            later.push((all.saturating_add(caps_of(copy)), sums & (u128::MAX >> (127 - GPU_PERCENT))));
        }
        later.reverse();
        let gpus_min = gpus_min(&copies, kb, caps);
        let least_company = company_min(&copies, count);
        let least = match prefer {
            Prefer::Any => (u32::MAX, u32::MAX),
            Prefer::Speed => (least_company, gpus_min),
            Prefer::Money => (gpus_min, company_min(&copies, gpus_min as usize)),
        };
        let (gpus, steps) = (vec![EMPTY; count], STEPS_MAX);
        let (chosen, best, seen) = (vec![], None, BTreeSet::new());
        Search { copies, kb, caps, prefer, later, least, least_company, gpus, chosen, best, steps, seen }
    }

    /// The GPU of every shard.
    pub(super) fn run(mut self) -> Option<Vec<(ModelCopy, usize)>> {
        // An end of the search is no failure: what it has found counts.
        let _: Result<(), Ended> = if self.may_better(0) { self.place_copy(0) } else { Ok(()) };
        let shards = self.copies.iter().flat_map(|copy| std::iter::repeat_n(*copy, copy.shards));
        self.best.map(|(_, gpus)| shards.zip(gpus).collect())
    }

    fn place_copy(&mut self, index: usize) -> Result<(), Ended> {
        let Some(copy) = self.copies.get(index).copied() else { return self.record() };
        let mut order: Vec<(usize, Gpu)> =
            self.gpus.iter().copied().enumerate().filter(|(_, gpu)| self.fits(&copy, gpu)).collect();
        order.sort_by_key(|(index, gpu)| {
            let company = if self.prefer == Prefer::Speed { gpu.holding(&copy).company() } else { 0 };
            (company, Reverse(*gpu != EMPTY), Reverse(gpu.cap), *gpu, *index)
        });
        self.place_shards(index, &copy, &order, copy.shards)
    }

    /// Places the copy's further shards on GPUs of this list.
    fn place_shards(
        &mut self,
        index: usize,
        copy: &ModelCopy,
        order: &[(usize, Gpu)],
        shards: usize,
    ) -> Result<(), Ended> {
        let Some(after) = shards.checked_sub(1) else {
            let next = index.saturating_add(1);
            return if self.may_better(next) && self.is_new(next) { self.place_copy(next) } else { Ok(()) };
        };
        let mut alike = None;
        for (at, (gpu, before)) in order.iter().enumerate() {
            let rest = order.get(at.saturating_add(1)..).unwrap_or(&[]);
            if rest.len() < after {
                break;
            }
            if alike.replace(*before) == Some(*before) {
                continue;
            }
            self.steps = self.steps.checked_sub(1).ok_or(Ended)?;
            self.set(*gpu, before.holding(copy));
            self.chosen.push(*gpu);
            let result = self.place_shards(index, copy, rest, after);
            self.chosen.pop();
            self.set(*gpu, *before);
            result?;
        }
        Ok(())
    }

    fn set(&mut self, gpu: usize, now: Gpu) {
        if let Some(gpu) = self.gpus.get_mut(gpu) {
            *gpu = now;
        }
    }

    fn fits(&self, copy: &ModelCopy, gpu: &Gpu) -> bool {
        let with = gpu.holding(copy);
        with.kb <= self.kb && (!self.caps || with.cap <= GPU_PERCENT)
    }

    /// Whether nothing like this has been followed, with so many copies placed.
    fn is_new(&mut self, placed: usize) -> bool {
        let mut gpus = self.gpus.clone();
        gpus.sort_unstable();
        self.seen.insert((placed, gpus))
    }

    /// Whether the copies after the first ones may all find room, at less than the best cost so far.
    fn may_better(&self, placed: usize) -> bool {
        let (needed, sums) = self.later.get(placed).copied().unwrap_or((0, 1));
        let mut more = 0_u32;
        if self.caps {
            // Of what a GPU has left, no more than a sum of later caps can be used.
            let usable = |gpu: &Gpu| {
                let left = GPU_PERCENT.saturating_sub(gpu.cap).min(GPU_PERCENT);
                127_u32.saturating_sub((sums & (u128::MAX >> (127 - left))).leading_zeros())
            };
            let (mut of_used, mut of_all) = (0_u32, 0_u32);
            for gpu in &self.gpus {
                let usable = usable(gpu);
                of_all = of_all.saturating_add(usable);
                of_used = of_used.saturating_add(if *gpu == EMPTY { 0 } else { usable });
            }
            if of_all < needed {
                return false;
            }
            more = needed.saturating_sub(of_used).div_ceil(usable(&EMPTY).max(1));
        }
        let later = self.copies.get(placed..).unwrap_or(&[]);
        let before = std::iter::once(None).chain(later.iter().map(Some));
        let mut new = later.iter().zip(before).filter(|(copy, before)| before.is_none_or(|b| b.model != copy.model));
        if new.any(|(copy, _)| self.gpus.iter().filter(|gpu| self.fits(copy, gpu)).count() < copy.shards) {
            return false;
        }
        let Some((best, _)) = &self.best else { return true };
        let (gpus, company) = self.gpus_and_company();
        self.cost(gpus.saturating_add(more), company.max(self.least_company)) < *best
    }

    fn gpus_and_company(&self) -> (u32, u32) {
        let used = self.gpus.iter().filter(|gpu| **gpu != EMPTY);
        used.fold((0, 0), |(count, company), gpu| (count.saturating_add(1), company.max(gpu.company())))
    }

    fn cost(&self, gpus: u32, company: u32) -> Cost {
        match self.prefer {
            Prefer::Speed => (company, gpus),
            Prefer::Any | Prefer::Money => (gpus, company),
        }
    }

    /// Keeps the placement, which is better than the best so far.
    fn record(&mut self) -> Result<(), Ended> {
        let (gpus, company) = self.gpus_and_company();
        let cost = self.cost(gpus, company);
        self.best = Some((cost, self.chosen.clone()));
        self.steps = self.steps.min(STEPS_BETTER);
        if cost <= self.least { Err(Ended) } else { Ok(()) }
    }
}

/// Caps of all shards, percent.
fn caps_of(copy: &ModelCopy) -> u32 {
    copy.cap.saturating_mul(u32::try_from(copy.shards).unwrap_or(u32::MAX))
}

/// GPUs that any placement needs.
fn gpus_min(copies: &[ModelCopy], kb: u64, caps: bool) -> u32 {
    let shards = copies.iter().map(|copy| copy.shards as u64).max().unwrap_or(0);
    let all_kb = copies.iter().fold(0_u64, |sum, copy| sum.saturating_add(copy.kb.saturating_mul(copy.shards as u64)));
    let all_caps = copies.iter().fold(0_u64, |sum, copy| sum.saturating_add(u64::from(caps_of(copy))));
    let by_caps = if caps { all_caps.div_ceil(u64::from(GPU_PERCENT)) } else { 0 };
    u32::try_from(shards.max(all_kb.div_ceil(kb.max(1))).max(by_caps)).unwrap_or(u32::MAX)
}

/// Company that some shard has in any placement on so many GPUs: on each all but one shard are company, which are least together if
/// the others are the largest.
fn company_min(copies: &[ModelCopy], gpus: usize) -> u32 {
    let mut caps: Vec<u32> = copies.iter().flat_map(|copy| std::iter::repeat_n(copy.cap, copy.shards)).collect();
    caps.sort_unstable_by_key(|cap| Reverse(*cap));
    let company = caps.iter().skip(gpus).fold(0_u32, |sum, cap| sum.saturating_add(*cap));
    company.div_ceil(u32::try_from(gpus.max(1)).unwrap_or(u32::MAX))
}
