//! Executions of a target until it fails or the time is over.

#![allow(clippy::disallowed_methods, reason = "a run takes as long as it is told")]

use std::cell::{Cell, RefCell};
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use routebalance_core::random::Random;

use crate::Target;
use crate::mutate::{minimised, mutated};
use crate::novelty::{self, Reached};

/// Executions that are spent on a shorter input.
const SHORTENING: usize = 4_000;
/// Inputs that a worker keeps.
const KEPT_MAX: usize = 8_192;

/// An input of which something does not hold.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The input.
    pub input: Vec<u8>,
    /// What does not hold, and where.
    pub message: String,
}

/// When to end.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// After this time.
    Time(Duration),
    /// After so many executions.
    Executions(u64),
}

/// What came of the executions.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How many there were.
    pub executions: u64,
    /// How long they took.
    pub took: Duration,
    /// Inputs that have reached something that no other one had.
    pub kept: Vec<Vec<u8>>,
    /// How much was reached.
    pub reached: u32,
    /// The first failure.
    pub failure: Option<Failure>,
}

thread_local! {
    static IS_CAUGHT: Cell<bool> = const { Cell::new(false) };
    static MESSAGE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Panics of inputs are kept and not printed.
fn catch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if IS_CAUGHT.get() {
                MESSAGE.set(info.to_string());
            } else {
                usual(info);
            }
        }));
    });
}

/// Takes an input: what does not hold, if something does not.
pub fn problem_of(target: Target, input: &[u8]) -> Option<String> {
    catch_panics();
    IS_CAUGHT.set(true);
    let result = panic::catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    IS_CAUGHT.set(false);
    result.is_err().then(|| MESSAGE.take())
}

/// The failure with the shortest input that was found.
pub fn shortened(target: Target, failure: Failure) -> Failure {
    // The same failure: the place in the code where it is seen is the first line.
    let place = |message: &str| message.lines().next().unwrap_or_default().to_owned();
    let sought = place(&failure.message);
    let fails = |input: &[u8]| problem_of(target, input).is_some_and(|message| place(&message) == sought);
    let input = minimised(failure.input, SHORTENING, fails);
    let message = problem_of(target, &input).unwrap_or(failure.message);
    Failure { input, message }
}

/// Takes every input once.
pub fn replay(target: Target, inputs: &[Vec<u8>]) -> Option<Failure> {
    inputs.iter().find_map(|input| problem_of(target, input).map(|message| Failure { input: input.clone(), message }))
}

/// Those inputs of which each reaches something that the ones before it do not, the shortest first.
pub fn distinct(target: Target, mut inputs: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    inputs.sort_by_key(Vec::len);
    let mut reached = Reached::default();
    let is_new = |input: &Vec<u8>| {
        novelty::take();
        problem_of(target, input).is_none() && reached.add_all(&novelty::take())
    };
    inputs.into_iter().filter(is_new).collect()
}

/// Executes a target with new inputs made of these, on so many threads.
pub fn run(target: Target, corpus: &[Vec<u8>], seed: u64, workers: u64, until: Until) -> Outcome {
    let (began, stop, executions) = (Instant::now(), AtomicBool::new(false), AtomicU64::new(0));
    let worker = |which: u64| {
        let is_over = || match until {
            Until::Time(time) => began.elapsed() >= time,
            Until::Executions(count) => executions.load(Ordering::Relaxed) >= count,
        };
        let mut random = Random::for_use(seed, which);
        let (mut corpus, mut kept, mut reached) = (corpus.to_vec(), Vec::new(), Reached::default());
        for input in &corpus {
            novelty::take();
            if problem_of(target, input).is_none() {
                reached.add_all(&novelty::take());
            }
        }
        while !stop.load(Ordering::Relaxed) && !is_over() {
            executions.fetch_add(1, Ordering::Relaxed);
            let input = mutated(&corpus, target.longest, &mut random);
            novelty::take();
            if let Some(message) = problem_of(target, &input) {
                stop.store(true, Ordering::Relaxed);
                return (kept, reached, Some(Failure { input, message }));
            }
            if reached.add_all(&novelty::take()) {
                kept.push(input.clone());
                if corpus.len() < KEPT_MAX {
                    corpus.push(input);
                } else {
                    let at = random.below(KEPT_MAX);
                    corpus[at] = input;
                }
            }
        }
        (kept, reached, None)
    };
    let worker = &worker;
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|which| scope.spawn(move || worker(which))).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    let took = began.elapsed();
    let mut outcome =
        Outcome { executions: executions.into_inner(), took, kept: Vec::new(), reached: 0, failure: None };
    for (kept, reached, failure) in results {
        outcome.kept.extend(kept);
        outcome.reached = outcome.reached.max(reached.count());
        outcome.failure = outcome.failure.or(failure);
    }
    outcome
}
