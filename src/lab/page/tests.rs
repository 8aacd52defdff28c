//! The page of made-up results: whole ones, small ones and broken ones.

use std::collections::BTreeMap;

use super::*;
use crate::cell::{Cell, CellWeights, Intervals, Reproduced, Slice, TimesMs};
use crate::frontier::{dominated, pareto};
use crate::targets;
use routebalance_core::random::Random;

/// Name, speed, best quality and settings of made-up contenders.
const MADE_UP: [(&str, f64, f64, usize); 14] = [
    (OURS, 0.75, 0.66, 16),
    (PAPER, 1.0, 0.655, 16),
    ("routebalance-paper-knn", 1.05, 0.65, 16),
    ("routebalance-paper-arm2", 1.3, 0.645, 1),
    ("best-route", 2.4, 0.652, 4),
    ("avengers-pro", 1.1, 0.63, 5),
    ("routellm", 1.6, 0.625, 3),
    ("quality-only", 3.0, 0.64, 1),
    ("cost-only", 0.9, 0.55, 1),
    ("round-robin", 1.5, 0.585, 1),
    ("least-load", 0.8, 0.59, 1),
    ("shortest-queue", 0.85, 0.588, 1),
    ("power-of-two", 0.9, 0.587, 1),
    (ORACLE, 0.7, 0.75, 16),
];

const MODELS: [&str; 4] = ["qwen2.5-3b", "qwen2.5-7b", "qwen2.5-32b", "qwen2.5-72b"];

fn cell(name: &str, which: usize, rate: f64, seed: u64, workload: &str) -> Cell {
    let (_, speed, best, settings) = MADE_UP.into_iter().find(|(known, ..)| *known == name).unwrap();
    let mut random = Random::for_use(seed, which as u64);
    // From the cheapest setting to the best.
    let ambition = if settings > 1 { which as f64 / (settings - 1) as f64 } else { 0.5 };
    let quality = best - 0.1 * (1.0 - ambition).powi(2) + 0.001 * random.normal();
    let load = (rate / 30.0).powi(3) * (0.2 + ambition.powi(4) * 6.0) * speed;
    let mean = 2000.0 * speed * (0.8 + 0.5 * ambition + load) * (1.0 + 0.01 * random.normal());
    let weighted = matches!(name, OURS | PAPER | ORACLE) || name.ends_with("knn");
    let w_q = (ambition * 0.9 * 100.0).round() / 100.0;
    let uniform = CellWeights { quality: 1.0 / 3.0, latency: 1.0 / 3.0, cost: 1.0 / 3.0 };
    let weights = if which == 6 {
        uniform
    } else {
        CellWeights { quality: w_q, latency: (1.0 - w_q) / 2.0, cost: (1.0 - w_q) / 2.0 }
    };
    let shares = [0.5 - 0.4 * ambition, 0.2, 0.3 - 0.1 * ambition, 0.5 * ambition];
    let mix: BTreeMap<String, f64> = MODELS.iter().zip(shares).map(|(m, share)| ((*m).to_owned(), share)).collect();
    let percentiles = |scale: f64| {
        (0..=100).map(move |p| scale * (0.3 + f64::from(p) / 90.0 + (f64::from(p) / 100.0).powi(30) * 3.0))
    };
    let wave = |at: f64| if workload == "square-40-6" && ((at / 20.0) as usize).is_multiple_of(2) { 1.8 } else { 0.6 };
    let slices = (0..30).map(|i| {
        let at_s = f64::from(i) * 5.0;
        let growth = 1.0 + load * f64::from(i) / 40.0;
        let shift = 0.1 * wave(at_s) * ambition;
        let mix = MODELS.iter().zip(shares).enumerate();
        let mix = mix.map(|(at, (m, share))| {
            (
                (*m).to_owned(),
                share
                    + if at == 0 {
                        shift
                    } else if at == 3 {
                        -shift
                    } else {
                        0.0
                    },
            )
        });
        Slice {
            at_s,
            requests: (rate * 5.0 * wave(at_s)) as usize,
            mix: mix.collect(),
            e2e_ms: mean * growth * wave(at_s),
        }
    });
    let slo = workload == "poisson budgets";
    Cell {
        policy: name.to_owned(),
        setting: if !weighted && settings > 1 {
            format!("threshold {:.1}", which as f64 / 10.0)
        } else {
            String::new()
        },
        weights: weighted.then_some(weights),
        workload: workload.split(' ').next().unwrap().to_owned(),
        rate,
        seed,
        gateways: 1,
        overhead: "charged".to_owned(),
        variant: if slo { "budgets 45 %".to_owned() } else { String::new() },
        requests: 3534,
        failed: usize::from(name == "quality-only") * 200,
        quality,
        cost_usd: 1.7e-5 * (1.0 + 3.0 * ambition.powi(2)) * (1.0 + 0.002 * random.normal()),
        ttft_ms: TimesMs { mean: mean / 8.0, p50: mean / 9.0, p99: mean * 0.7 },
        tpot_ms: TimesMs { mean: 18.0, p50: 17.0, p99: 40.0 },
        e2e_ms: TimesMs { mean, p50: mean * 0.85, p99: mean * 3.5 },
        throughput_rps: rate.min(24.0 / speed.sqrt()) - 0.2,
        served: Some(1.0),
        slo_attainment: slo.then_some(0.9 - 0.1 * speed),
        budget_exhausted: slo.then_some(0.1 * speed),
        shed: slo.then_some(0.0),
        mix,
        decision_us: 300.0,
        intervals: Intervals {
            quality: [quality - 0.001, quality + 0.001],
            cost_usd: [1.6e-5, 1.8e-5],
            e2e_ms: [mean * 0.97, mean * 1.03],
        },
        e2e_percentiles_ms: percentiles(mean).collect(),
        ttft_percentiles_ms: percentiles(mean / 8.0).collect(),
        timeline: slices.collect(),
    }
}

fn whole() -> Cells {
    let mut cells = Vec::new();
    for (name, _, _, settings) in MADE_UP {
        for seed in 1..=3 {
            for which in 0..settings {
                for rate in [6.0, 8.0, 10.0, 12.0, 18.0, 24.0, 30.0] {
                    cells.push(cell(name, which, rate, seed, "poisson"));
                }
                let balanced = settings == 1 || which == settings / 3 + 1;
                for workload in ["gamma-0.3", "square-40-6", "poisson budgets"].into_iter().filter(|_| balanced) {
                    cells.push(cell(name, which, 16.0, seed, workload));
                }
            }
        }
    }
    let row = ["peak quality", "0.419", "0.66", "another judge < & > \"other\" prompts"].map(str::to_owned);
    let [what, published, ours, why] = row;
    let reproduction = vec![Reproduced { what, published, ours, why }];
    let mut cells = Cells { preset: "paper".to_owned(), cells, reproduction, ..Default::default() };
    cells.targets = targets::judged(&cells);
    cells
}

/// Every element that is opened is closed in the right order; void elements and scripts aside.
fn is_balanced(html: &str) -> Result<(), String> {
    let (before, rest) = html.split_once("<script>").ok_or("no script")?;
    let after = rest.split_once("</script>").ok_or("the script does not end")?.1;
    let mut open: Vec<String> = Vec::new();
    for part in format!("{before}{after}").split('<').skip(1) {
        let (tag, text) = part.split_once('>').ok_or(format!("<{part} does not end"))?;
        if text.contains('>') && open.last().is_none_or(|name| name != "style") {
            return Err(format!("a bare > after <{tag}>"));
        }
        if let Some(name) = tag.strip_prefix('/') {
            if open.pop().as_deref() != Some(name) {
                return Err(format!("</{name}> closes something else"));
            }
        } else if !tag.starts_with('!') {
            let name = tag.split_whitespace().next().unwrap_or_default();
            // The page's only element without an end.
            if name != "meta" {
                open.push(name.to_owned());
            }
        }
    }
    if open.is_empty() { Ok(()) } else { Err(format!("not closed: {open:?}")) }
}

fn check(html: &str, what: &str) {
    assert_eq!(is_balanced(html), Ok(()), "{what}");
    for word in ["http://", "https://", "NaN", "inf<", "src=", "@import", "url("] {
        assert!(!html.contains(word), "{what}: the page contains {word:?}");
    }
}

#[test]
fn a_whole_result_has_every_part() {
    let page = result_page(&whole());
    check(&page, "whole");
    for (name, ..) in MADE_UP {
        assert!(page.contains(&format!("data-c=\"{name}\"")), "{name} is missing");
    }
    let parts = [
        "glance",
        "paper",
        "frontiers",
        "rates",
        "load",
        "course",
        "robustness",
        "budgets",
        "reproduction",
        "reading",
        "basis",
    ];
    for id in parts {
        assert!(page.contains(&format!("<section id=\"{id}\">")), "{id} is missing");
    }
    assert!(page.contains("another judge &lt; &amp; &gt; &quot;other&quot; prompts"));
    assert!(page.contains("<td class=\"n met\">met</td>"));
    assert!(page == result_page(&whole()), "the same result gives the same page");
}

#[test]
fn names_are_words_wherever_they_stand() {
    let name = "<b>\"&";
    let mut cells = whole();
    cells.preset = name.to_owned();
    cells.cells.retain(|cell| cell.seed == 1 && cell.rate == 12.0);
    for cell in &mut cells.cells {
        if cell.policy == "round-robin" {
            cell.policy = name.to_owned();
        }
        cell.workload = name.to_owned();
        cell.variant = name.to_owned();
    }
    let page = result_page(&cells);
    check(&page, "names");
    assert!(!page.contains("<b>\"") && page.matches("&lt;b&gt;&quot;&amp;").count() > 10);
    assert!(page.contains("data-c=\"&lt;b&gt;&quot;&amp;\""));
}

#[test]
fn data_decide_what_is_there() {
    let only = |keep: &dyn Fn(&Cell) -> bool| {
        let all = whole().cells.into_iter().filter(|cell| keep(cell)).collect();
        Cells { preset: "quick".to_owned(), cells: all, ..Default::default() }
    };
    let first = |cell: &Cell| cell.seed == 1 && cell.rate == 12.0;
    let rows: [(&str, Cells, &[&str]); 5] = [
        ("nothing", Cells::default(), &["glance", "paper", "frontiers", "load", "budgets"]),
        ("one rate", only(&first), &["rates", "robustness", "budgets", "reproduction"]),
        ("one contender", only(&|cell| first(cell) && cell.policy == "round-robin"), &["paper", "rates", "budgets"]),
        ("without ours", only(&|cell| cell.policy != OURS), &["paper"]),
        ("without the paper's", only(&|cell| !cell.policy.starts_with(PAPER)), &["paper"]),
    ];
    for (what, cells, missing) in rows {
        let page = result_page(&cells);
        check(&page, what);
        for id in missing {
            assert!(!page.contains(&format!("<section id=\"{id}\">")), "{what}: {id} has no data");
        }
    }
}

#[test]
fn a_cell_in_which_everything_failed_is_drawn() {
    let mut cells = whole();
    cells.cells.truncate(1);
    let cell = &mut cells.cells[0];
    *cell = Cell {
        failed: cell.requests,
        quality: f64::NAN,
        cost_usd: f64::NAN,
        e2e_ms: TimesMs { mean: f64::NAN, p50: f64::INFINITY, p99: f64::NAN },
        ttft_ms: TimesMs::default(),
        throughput_rps: 0.0,
        intervals: Intervals { quality: [f64::NAN; 2], cost_usd: [f64::NAN; 2], e2e_ms: [f64::NAN; 2] },
        e2e_percentiles_ms: vec![f64::NAN; 101],
        ttft_percentiles_ms: Vec::new(),
        timeline: Vec::new(),
        ..cell.clone()
    };
    check(&result_page(&cells), "failed");
}

#[test]
fn plots_are_files() {
    let folder = tempfile::tempdir().unwrap();
    let (result, page, plots) =
        (folder.path().join("result.json"), folder.path().join("page.html"), folder.path().join("plots"));
    let mut cells = whole();
    cells.cells.retain(|cell| cell.seed == 1 && cell.rate == 12.0);
    std::fs::write(&result, serde_json::to_vec(&cells).unwrap()).unwrap();
    render(&result, Some(&page), Some(&plots)).unwrap();
    assert!(std::fs::read_to_string(&page).unwrap() == result_page(&cells), "the page differs after a round trip");
    let png = std::fs::read(plots.join("quality-latency.png")).unwrap();
    assert!(png.starts_with(b"\x89PNG") && png.len() > 10_000, "{} bytes", png.len());
    let svg = std::fs::read_to_string(plots.join("quality-latency.svg")).unwrap();
    assert!(svg.starts_with("<svg xmlns=") && svg.contains(OURS) && !svg.contains("NaN"));
    std::fs::write(&result, "{}").unwrap();
    let refused = render(&result, Some(&page), None).unwrap_err();
    assert!(format!("{refused:#}").contains("not a result of the lab"), "{refused:#}");
}

/// Cells of ours and theirs as (quality, cost, mean E2E) and how the duels end.
#[test]
fn duels_are_won_by_time_at_no_less_quality_and_no_more_cost() {
    type Three = (f64, f64, f64);
    let made = |name: &str, (quality, cost_usd, mean): Three, which: usize| Cell {
        quality,
        cost_usd,
        e2e_ms: TimesMs { mean, p50: mean, p99: 2.0 * mean },
        setting: which.to_string(),
        ..cell(name, 0, 12.0, 1, "poisson")
    };
    let theirs = (0.6, 1e-5, 1000.0);
    let rows: [(&[Three], Outcome, Option<f64>); 7] = [
        (&[(0.6, 1e-5, 900.0)], Outcome::Win, Some(0.9)),
        (&[(0.598, 1.009e-5, 990.0)], Outcome::Tie, Some(0.99)),
        (&[(0.7, 0.5e-5, 1100.0)], Outcome::Loss, Some(1.1)),
        (&[(0.596, 1e-5, 100.0)], Outcome::Loss, None),
        (&[(0.6, 1.02e-5, 100.0)], Outcome::Loss, None),
        (&[(0.6, 1e-5, 900.0), (0.61, 1e-5, 500.0)], Outcome::Win, Some(0.5)),
        (&[], Outcome::Loss, None),
    ];
    for (ours, outcome, ratio) in rows {
        let mut cells = vec![made(PAPER, theirs, 0)];
        cells.extend(ours.iter().enumerate().map(|(which, values)| made(OURS, *values, which)));
        let cells = Cells { cells, ..Default::default() };
        let all = summaries(&cells);
        let one = against(&all.iter().collect::<Vec<_>>(), OURS, PAPER, 12.0);
        assert_eq!(one.duels.len(), 1, "{ours:?}");
        assert_eq!(one.duels[0].outcome, outcome, "{ours:?}");
        assert_eq!(one.mean_ratio(0.0), ratio, "{ours:?}");
        assert_eq!(one.p99_ratio(0.0), ratio, "{ours:?}");
        let swapped = dominated(&all.iter().collect::<Vec<_>>(), PAPER, 12.0);
        assert_eq!(swapped.len(), usize::from(outcome == Outcome::Win), "{ours:?}");
    }
}

#[test]
fn targets_are_met_by_who_meets_them() {
    let cells = whole();
    let all = targets::judged(&cells);
    assert_eq!(all.len(), 9, "{all:?}");
    assert!(all.iter().all(|target| target.met), "{all:?}");
    // The same with the names of ours and the paper's exchanged: only what both keep is met.
    let mut swapped = cells;
    for cell in &mut swapped.cells {
        match cell.policy.as_str() {
            OURS => cell.policy = PAPER.to_owned(),
            PAPER => cell.policy = OURS.to_owned(),
            _ => {}
        }
    }
    let all = targets::judged(&swapped);
    let met: Vec<&str> = all.iter().filter(|target| target.met).map(|target| target.what.as_str()).collect();
    assert_eq!(met, ["the cheapest cell, tied with the cheapest"], "{all:?}");
    assert!(targets::judged(&Cells::default()).is_empty());
}

#[test]
fn seeds_of_a_workload_with_its_own_rate_are_together() {
    let rates = [(1, 10.2), (2, 10.9), (3, 9.8), (1, 12.0), (2, 12.0), (3, 12.0)];
    let cells = rates.map(|(seed, rate)| Cell { rate, ..cell("round-robin", 0, 12.0, seed, "square-40-6") });
    let cells = Cells { cells: cells.to_vec(), ..Default::default() };
    let found: Vec<(usize, f64)> = summaries(&cells).iter().map(|s| (s.cells.len(), (s.rate * 10.0).round())).collect();
    assert_eq!(found, [(3, 103.0), (3, 120.0)]);
}

#[test]
fn the_oracle_dominates_nobody() {
    let cells = Cells {
        cells: vec![cell(OURS, 3, 12.0, 1, "poisson"), cell(ORACLE, 3, 12.0, 1, "poisson")],
        ..Default::default()
    };
    let all = summaries(&cells);
    assert!(dominated(&all.iter().collect::<Vec<_>>(), OURS, 12.0).is_empty());
}

#[test]
fn a_frontier_has_what_nothing_beats() {
    let points = [(2.0, 0.5), (1.0, 0.4), (3.0, 0.45), (2.0, 0.6), (4.0, 0.7), (f64::NAN, 0.9)];
    assert_eq!(pareto(&points, true), [(1.0, 0.4), (2.0, 0.6), (4.0, 0.7)]);
    assert_eq!(pareto(&points, false), [(4.0, 0.7)]);
}
