//! Why our numbers differ from the published ones, and what both show where the numbers show it.

/// Quality at its highest.
pub(super) const PEAK: &str = "Benchmark scores instead of a judge's; all predictors are trained on the same rows, and the largest models are right \
     more often than a predictor can tell them apart";
/// The cheapest cell.
pub(super) const CHEAPEST: &str = "The same prices; answers and prompts are longer";
/// What is sustained.
pub(super) const SUSTAINED: &str = "Published is the most answers per second of any cell, down to the last answer; here the highest rate at which .97 of the \
     requests are answered while they come, with a p99 TTFT of at most 5 s. V100 and A30 timings with a batch that slows down \
     by 1.5 % a sequence carry a load of their own";
/// Shares of models.
pub(super) const MIX: &str = "32B is better than 14B, dearer and slower, and prompts differ";
/// Longest first switched off.
pub(super) const LONGEST_FIRST: &str = "Batches of a few requests are in nearly the same order either way";
/// Batches of a fixed size.
pub(super) const BATCH_SIZES: &str = "Mean E2E against adaptive batches, mean over 8, 16 and 24/s. The published curves are not in its text. One request at a \
     time takes 30 ms each: beyond 33/s it would not keep up";
/// BEST-Route's slowest settings.
pub(super) const SERIAL: &str =
    "Here BEST-Route sends most prompts to the largest models, whose queues take longer than its classifier";
/// Bursts and waves.
pub(super) const UNSTEADY: &str = "The fastest headline setting of each; longer answers";

/// Mean E2E grows by at most this factor over the rates where hardly anything queues; published is 1.2.
const FLAT_MAX: f64 = 2.0;
/// p99 E2E of a queue that only grows, seconds; published is 111.
const COLLAPSED_MIN_SECONDS: f64 = 60.0;

/// Uniform weights: mean E2E at the lowest and at the highest rate.
pub(super) fn uniform(first_seconds: f64, last_seconds: f64) -> &'static str {
    if last_seconds <= FLAT_MAX * first_seconds {
        "Longer answers; the shape is the same: flat where nothing queues"
    } else {
        "Longer answers"
    }
}

/// The quality preset at the highest rate.
pub(super) fn quality_preset(e2e_p99_seconds: f64) -> &'static str {
    if e2e_p99_seconds >= COLLAPSED_MIN_SECONDS {
        "The same collapse: nothing caps the queue of the largest model"
    } else {
        ""
    }
}

/// Arms 2 and 3: how much longer than arm 1 they take, as a share of it.
pub(super) fn arms(second: f64, third: f64) -> &'static str {
    if second.min(third) > 0.0 { "The same finding: time counts when the model is chosen" } else { "" }
}

/// Arm 4: how much longer than arm 1 it takes, as a share of it.
pub(super) fn static_prior(fourth: f64) -> &'static str {
    if fourth > 0.0 {
        "Here the fitted times are worth something: a simulated instance slows down with its batch as its profile says, and answers are \
         long enough for batches to grow"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_follow_from_the_numbers() {
        let rows = [
            (uniform(2.3, 2.8), "flat"),
            (quality_preset(111.0), "collapse"),
            (arms(0.26, 0.31), "same finding"),
            (static_prior(0.06), "worth something"),
        ];
        for (verdict, part) in rows {
            assert!(verdict.contains(part), "{verdict}");
        }
        assert_eq!(uniform(2.3, 9.0), "Longer answers");
        for verdict in [quality_preset(20.0), arms(0.26, -0.01), static_prior(-0.08)] {
            assert_eq!(verdict, "");
        }
    }
}
