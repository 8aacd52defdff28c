//! What the demo shows: a live table while traffic runs, plain lines where standard output is no terminal, and the comparison.

use std::io::{IsTerminal, stdout};
use std::time::Duration;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use indicatif::{ProgressBar, ProgressStyle};

use super::stats::PolicySummary;

const BAR_WIDTH: f64 = 30.0;

/// Progress of one policy's traffic.
#[derive(Debug)]
pub struct LiveView {
    bar: Option<ProgressBar>,
    expected: usize,
    models: Vec<String>,
}

impl LiveView {
    /// A view of `expected` requests under a policy, whose answers come from `models`.
    pub fn new(policy: &str, expected: usize, models: &[&str]) -> Self {
        println!("\nPolicy {policy}: {expected} requests");
        let bar = stdout().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:40} {pos}/{len} answered, {elapsed}\n{msg}");
            let bar = ProgressBar::with_draw_target(Some(expected as u64), indicatif::ProgressDrawTarget::stdout());
            bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Self { bar, expected, models: models.iter().map(|m| (*m).to_owned()).collect() }
    }

    /// How often it wants to be shown.
    pub fn period(&self) -> Duration {
        if self.bar.is_some() { Duration::from_millis(250) } else { Duration::from_secs(5) }
    }

    /// Shows the state.
    pub fn show(&self, so_far: &PolicySummary, elapsed: Duration) {
        match &self.bar {
            Some(bar) => {
                bar.set_position(so_far.requests as u64);
                bar.set_message(self.table(so_far));
            }
            None if so_far.requests > 0 => println!("{}", self.line(so_far, elapsed)),
            None => {}
        }
    }

    /// Shows the final state and leaves it on the screen.
    pub fn finish(&self, summary: &PolicySummary, elapsed: Duration) {
        match &self.bar {
            Some(bar) => {
                bar.finish_and_clear();
                println!("{}", self.table(summary));
            }
            None => println!("{}", self.line(summary, elapsed)),
        }
    }

    fn line(&self, s: &PolicySummary, elapsed: Duration) -> String {
        let mix: Vec<String> = self.models.iter().map(|m| format!("{m} {:.0} %", 100.0 * share(s, m))).collect();
        format!(
            "{:>4.0} s  {}/{} answered, {} failed | {} | quality {:.3} | USD {:.7} per request | TTFT {:.0} ms | E2E {:.0} ms",
            elapsed.as_secs_f64(),
            s.requests - s.failed,
            self.expected,
            s.failed,
            mix.join(", "),
            s.quality,
            s.cost_usd,
            s.ttft_ms.mean,
            s.e2e_ms.mean,
        )
    }

    fn table(&self, s: &PolicySummary) -> String {
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED);
        for model in &self.models {
            let share = share(s, model);
            let bar = "█".repeat((BAR_WIDTH * share).round() as usize);
            table.add_row([model.clone(), format!("{:5.1} % {bar}", 100.0 * share)]);
        }
        for metric in METRICS {
            table.add_row([metric.name.to_owned(), metric.show(s)]);
        }
        table.add_row(["failed".to_owned(), s.failed.to_string()]);
        table.to_string()
    }
}

/// The share of a model in the answers, in [0, 1].
fn share(s: &PolicySummary, model: &str) -> f64 {
    s.mix.get(model).copied().unwrap_or_default()
}

struct Metric {
    name: &'static str,
    unit: &'static str,
    decimals: usize,
    value: fn(&PolicySummary) -> f64,
}

impl Metric {
    fn show(&self, s: &PolicySummary) -> String {
        format!("{:.*} {}", self.decimals, (self.value)(s), self.unit)
    }
}

const METRICS: [Metric; 8] = [
    Metric { name: "quality (mean)", unit: "", decimals: 3, value: |s| s.quality },
    Metric { name: "cost per request (mean)", unit: "USD", decimals: 7, value: |s| s.cost_usd },
    Metric { name: "TTFT mean", unit: "ms", decimals: 0, value: |s| s.ttft_ms.mean },
    Metric { name: "TTFT p99", unit: "ms", decimals: 0, value: |s| s.ttft_ms.p99 },
    Metric { name: "E2E mean", unit: "ms", decimals: 0, value: |s| s.e2e_ms.mean },
    Metric { name: "E2E p99", unit: "ms", decimals: 0, value: |s| s.e2e_ms.p99 },
    Metric { name: "decision p50", unit: "µs", decimals: 0, value: |s| s.decision_us.p50 },
    Metric { name: "decision p99", unit: "µs", decimals: 0, value: |s| s.decision_us.p99 },
];

/// The policies side by side; the last column compares the first with the last.
pub fn comparison(summaries: &[PolicySummary], models: &[&str]) -> String {
    let (Some(first), Some(last)) = (summaries.first(), summaries.last()) else { return String::new() };
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    let names = summaries.iter().map(|s| s.policy.clone());
    table.set_header([String::new()].into_iter().chain(names).chain([format!("against {}", last.policy)]));
    for model in models {
        let cell = |s: &PolicySummary| format!("{:.1} %", 100.0 * share(s, model));
        table.add_row([(*model).to_owned()].into_iter().chain(summaries.iter().map(cell)));
    }
    for metric in METRICS {
        let change = relative_change((metric.value)(first), (metric.value)(last));
        table.add_row(
            [metric.name.to_owned()].into_iter().chain(summaries.iter().map(|s| metric.show(s))).chain([change]),
        );
    }
    let counts = |s: &PolicySummary| format!("{} of {}", s.failed, s.requests);
    table.add_row(["failed".to_owned()].into_iter().chain(summaries.iter().map(counts)));
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    table.to_string()
}

fn relative_change(value: f64, base: f64) -> String {
    if base == 0.0 { "-".to_owned() } else { format!("{:+.1} %", 100.0 * (value / base - 1.0)) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use routebalance_lab::cell::TimesMs;

    fn summary(policy: &str, quality: f64, mean: f64) -> PolicySummary {
        PolicySummary {
            policy: policy.to_owned(),
            requests: 10,
            failed: 1,
            mix: BTreeMap::from([("m".to_owned(), 1.0)]),
            quality,
            ttft_ms: TimesMs { mean, p50: mean, p99: mean },
            ..PolicySummary::default()
        }
    }

    #[test]
    fn the_comparison_shows_both_policies_and_the_change() {
        let text = comparison(&[summary("ours", 0.6, 50.0), summary("round-robin", 0.5, 100.0)], &["m"]);
        let row = |name: &str| text.lines().find(|l| l.contains(name)).unwrap_or_default();
        for (name, parts) in [
            ("quality", ["0.600", "0.500", "+20.0 %"]),
            ("TTFT mean", ["50 ms", "100 ms", "-50.0 %"]),
            ("cost", ["0.0000000 USD", "0.0000000 USD", " - "]),
            ("failed", ["1 of 10", "1 of 10", ""]),
            ("against", ["ours", "round-robin", "against round-robin"]),
        ] {
            assert!(parts.iter().all(|part| row(name).contains(part)), "{name}: {}", row(name));
        }
    }

    #[test]
    fn a_plain_line_has_the_whole_state() {
        let view = LiveView { bar: None, expected: 20, models: vec!["m".to_owned(), "n".to_owned()] };
        let line = view.line(&summary("ours", 0.6, 50.0), Duration::from_secs(5));
        for part in ["9/20 answered", "1 failed", "m 100 %, n 0 %", "quality 0.600", "TTFT 50 ms"] {
            assert!(line.contains(part), "{line}");
        }
    }
}
