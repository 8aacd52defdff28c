//! Cells of an experiment on two threads.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use indicatif::ProgressBar;

/// The machine's other work keeps its cores.
const THREADS: usize = 2;

/// `measure` of every job, in the order of the jobs, with a progress bar.
pub(super) fn measured<J: Sync, R: Send>(jobs: &[J], measure: impl Fn(&J) -> R + Sync) -> Vec<R> {
    let bar = ProgressBar::new(jobs.len() as u64);
    let next = AtomicUsize::new(0);
    let (sender, receiver) = mpsc::channel();
    let mut results: Vec<Option<R>> = jobs.iter().map(|_| None).collect();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            let (sender, next, measure) = (sender.clone(), &next, &measure);
            scope.spawn(move || {
                while let Some((i, job)) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|i| Some((i, jobs.get(i)?)))
                {
                    if sender.send((i, measure(job))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        for (i, result) in receiver {
            bar.inc(1);
            results[i] = Some(result);
        }
    });
    bar.finish_and_clear();
    results.into_iter().flatten().collect()
}

/// Mean and standard deviation over seeds.
pub(super) fn spread(values: &[f64]) -> (f64, f64) {
    let n = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    (mean, variance.sqrt())
}
