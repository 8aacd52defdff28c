//! Cells of an experiment on two threads.

use std::sync::mpsc;

use indicatif::{ProgressBar, ProgressStyle};
use rayon::ThreadPoolBuilder;
use rayon::iter::{ParallelBridge, ParallelIterator};

/// The machine's other work keeps its cores.
const THREADS: usize = 2;

/// `measure` of every job, with a progress bar. `done` hears of each result as it comes, and says whether to go on.
pub(crate) fn each_measured<J: Sync, R: Send>(
    jobs: &[J],
    measure: impl Fn(&J) -> R + Sync,
    mut done: impl FnMut(&J, R) -> bool,
) {
    let bar = ProgressBar::new(jobs.len() as u64);
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len} cells, {elapsed}, {eta} to go") {
        bar.set_style(style);
    }
    let pool = ThreadPoolBuilder::new().num_threads(THREADS).build().expect("threads can be started");
    let (sender, receiver) = mpsc::channel();
    let measure = &measure;
    pool.in_place_scope(|scope| {
        // Jobs begin in their order, and none begins once nobody listens.
        scope.spawn(move |_| {
            let send = |sender: &mut mpsc::Sender<_>, job| sender.send((job, measure(job))).ok();
            let _ = jobs.iter().par_bridge().try_for_each_with(sender, send);
        });
        for (job, result) in receiver {
            bar.inc(1);
            if !done(job, result) {
                break;
            }
        }
    });
    bar.finish_and_clear();
}

/// `measure` of every job, in the order of the jobs.
pub(crate) fn measured<J: Sync, R: Send>(jobs: &[J], measure: impl Fn(&J) -> R + Sync) -> Vec<R> {
    let numbered: Vec<(usize, &J)> = jobs.iter().enumerate().collect();
    let mut results: Vec<Option<R>> = jobs.iter().map(|_| None).collect();
    each_measured(
        &numbered,
        |(_, job)| measure(job),
        |(i, _), result| {
            results[*i] = Some(result);
            true
        },
    );
    results.into_iter().flatten().collect()
}

/// Mean and standard deviation over seeds.
pub(crate) fn spread(values: &[f64]) -> (f64, f64) {
    let n = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    (mean, variance.sqrt())
}
