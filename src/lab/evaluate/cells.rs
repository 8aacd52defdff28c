//! Cells of an experiment on two threads.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use indicatif::{ProgressBar, ProgressStyle};

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
    let next = AtomicUsize::new(0);
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            let (sender, next, measure) = (sender.clone(), &next, &measure);
            scope.spawn(move || {
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if sender.send((job, measure(job))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
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
