//! Whether simulated cells are what a real Envoy made of the same requests.

use std::collections::BTreeSet;

use routebalance_lab::cell::Cell;

/// Most by which a model's share of the requests may differ.
const SHARE_LIMIT: f64 = 0.03;
/// Most by which the mean quality may differ.
const QUALITY_LIMIT: f64 = 0.01;
/// Most by which a mean time may differ: this share of the real one ...
const TIME_LIMIT_SHARE: f64 = 0.1;
/// ... or so many milliseconds, whichever is more.
const TIME_LIMIT_MS: f64 = 10.0;

/// One number of both.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Compared {
    /// What it is, with its unit.
    pub(super) what: String,
    /// Of each real run, in their order.
    pub(super) runs: Vec<f64>,
    /// The median of the real runs; not a number without any.
    pub(super) real: f64,
    /// The median of the simulated ones.
    pub(super) simulated: f64,
    /// Most by which the two may differ.
    pub(super) limit: f64,
}

impl Compared {
    fn new(what: String, real: &[Cell], simulated: &[Cell], limit: f64, of: impl Fn(&Cell) -> f64) -> Compared {
        let runs: Vec<f64> = real.iter().map(&of).collect();
        let simulated: Vec<f64> = simulated.iter().map(&of).collect();
        Compared { what, real: median(&runs), runs, simulated: median(&simulated), limit }
    }

    /// Whether they differ by no more than the limit; what is not a number never agrees.
    pub(super) fn agrees(&self) -> bool {
        (self.real - self.simulated).abs() <= self.limit
    }

    /// Decimals that tell it apart.
    pub(super) fn decimals(&self) -> usize {
        if self.limit >= 1.0 { 0 } else { 3 }
    }
}

/// Everything that must agree. The median of each number over the runs counts.
pub(super) fn compared(real: &[Cell], simulated: &[Cell]) -> Vec<Compared> {
    let models: BTreeSet<&String> = real.iter().chain(simulated).flat_map(|cell| cell.mix.keys()).collect();
    let share = |model: &String| {
        let share_of_cell = |cell: &Cell| cell.mix.get(model).copied().unwrap_or(0.0);
        Compared::new(format!("share of {model}"), real, simulated, SHARE_LIMIT, share_of_cell)
    };
    let time = |what: &str, of: fn(&Cell) -> f64| {
        let mut compared = Compared::new(format!("mean {what}, ms"), real, simulated, TIME_LIMIT_MS, of);
        compared.limit = compared.limit.max(TIME_LIMIT_SHARE * compared.real);
        compared
    };
    let mut all = vec![Compared::new("failed requests".to_owned(), real, simulated, 0.0, |c| c.failed as f64)];
    all.extend(models.into_iter().map(share));
    all.push(Compared::new("mean quality".to_owned(), real, simulated, QUALITY_LIMIT, |c| c.quality));
    all.push(time("TTFT", |c| c.ttft_ms.mean));
    all.push(time("E2E", |c| c.e2e_ms.mean));
    all
}

/// Of an even number the mean of the two in the middle; not a number of none.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.get(middle) {
        None => f64::NAN,
        Some(upper) if sorted.len() % 2 == 1 => *upper,
        Some(upper) => sorted[middle - 1].midpoint(*upper),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use routebalance_lab::cell::{Intervals, TimesMs};

    fn cell(big: f64, quality: f64, ttft: f64, e2e: f64) -> Cell {
        let times = |mean| TimesMs { mean, p50: mean, p99: mean };
        Cell {
            policy: "routebalance".to_owned(),
            setting: String::new(),
            weights: None,
            workload: "real".to_owned(),
            rate: 1.0,
            seed: 1,
            gateways: 1,
            overhead: "measured".to_owned(),
            variant: String::new(),
            requests: 100,
            failed: 0,
            quality,
            cost_usd: 0.0,
            ttft_ms: times(ttft),
            tpot_ms: times(10.0),
            e2e_ms: times(e2e),
            throughput_rps: 1.0,
            served: None,
            slo_attainment: None,
            budget_exhausted: None,
            shed: None,
            mix: BTreeMap::from([("big".to_owned(), big), ("small".to_owned(), 1.0 - big)]),
            decision_us: 0.0,
            intervals: Intervals::default(),
            e2e_percentiles_ms: Vec::new(),
            ttft_percentiles_ms: Vec::new(),
            timeline: Vec::new(),
        }
    }

    fn disagreeing(real: &[Cell], simulated: &[Cell]) -> Vec<String> {
        compared(real, simulated).into_iter().filter(|c| !c.agrees()).map(|c| c.what).collect()
    }

    #[test]
    fn each_number_has_its_limit() {
        let real = [cell(0.40, 0.60, 50.0, 4_000.0)];
        let rows: [(&str, Cell, &[&str]); 9] = [
            ("the same", cell(0.40, 0.60, 50.0, 4_000.0), &[]),
            ("within every limit", cell(0.42, 0.609, 59.0, 4_399.0), &[]),
            ("shares", cell(0.44, 0.60, 50.0, 4_000.0), &["share of big", "share of small"]),
            ("quality", cell(0.40, 0.589, 50.0, 4_000.0), &["mean quality"]),
            ("10 ms where a tenth is less", cell(0.40, 0.60, 60.1, 4_000.0), &["mean TTFT, ms"]),
            ("a tenth where 10 ms are less", cell(0.40, 0.60, 50.0, 3_599.0), &["mean E2E, ms"]),
            ("a model that only one used", cell(0.0, 0.60, 50.0, 4_000.0), &["share of big", "share of small"]),
            ("not a number", cell(0.40, f64::NAN, 50.0, 4_000.0), &["mean quality"]),
            ("failures", Cell { failed: 1, ..real[0].clone() }, &["failed requests"]),
        ];
        for (name, simulated, expected) in rows {
            assert_eq!(disagreeing(&real, &[simulated]), expected, "{name}");
        }
    }

    #[test]
    fn the_median_run_counts() {
        let run = |e2e| cell(0.40, 0.60, 50.0, e2e);
        let simulated = [run(4_000.0), run(100.0), run(4_010.0)];
        let rows: [(&str, Vec<Cell>, f64, bool); 4] = [
            ("one bad run of three", vec![run(9_000.0), run(4_100.0), run(4_200.0)], 4_200.0, true),
            ("two bad runs of three", vec![run(9_000.0), run(4_100.0), run(6_000.0)], 6_000.0, false),
            ("two runs", vec![run(4_100.0), run(4_300.0)], 4_200.0, true),
            ("no run", vec![], f64::NAN, false),
        ];
        for (name, real, median, agrees) in rows {
            let e2e = compared(&real, &simulated).pop().unwrap();
            assert_eq!((e2e.runs.len(), e2e.agrees()), (real.len(), agrees), "{name}");
            assert!(e2e.real == median || median.is_nan() && e2e.real.is_nan(), "{name}: {}", e2e.real);
        }
    }
}
