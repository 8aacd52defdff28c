use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::contenders::ours;
use crate::planning::rivals::judge::tests::answers;
use routebalance_core::config::Config;
use routebalance_core::fleet::{Fleet, Objective, PolicyId, Weights};
use routebalance_core::router::Router;
use routebalance_plan::prices::prices;
use routebalance_plan::scores::Scores;
use routebalance_plan::setup::Choice;
use routebalance_sim::simulation::{Options, Simulation};
use routebalance_sim::workload::{Arrivals, ChatMix, Template, Workload, sustainable_rates};

const RATE: f64 = 20.0;

/// The reference fleet's three smallest models, with as many instances as a setup has copies.
fn config(setup: &Setup) -> Config {
    let mut json: serde_json::Value =
        serde_json::from_str(include_str!("../../../../envoy/routebalance.json")).unwrap();
    json["models"].as_array_mut().unwrap().truncate(3);
    json["pools"].as_array_mut().unwrap().truncate(3);
    json["virtual_models"] = json!([]);
    for (p, choice) in setup.0.iter().enumerate() {
        let address = |i: u32| json!(format!("127.0.0.1:{}", 19_000 + 100 * p as u32 + i));
        json["pools"][p]["instances"] = (0..choice.replicas).map(address).collect();
    }
    json["predictor"]["enabled"] = json!(false);
    Config::parse(json.to_string().as_bytes()).unwrap()
}

fn setup(replicas: [u32; 3]) -> Setup {
    let choice = |replicas| Choice { kind: 0, tensor_parallel: 1, share_percent: 100, replicas };
    Setup(replicas.map(choice).to_vec())
}

/// Requests with lengths of a chat, and with these answers.
fn templates(fleet: &Fleet, quality: &[Vec<f64>], expected: &[Vec<f64>], seed: u64) -> Arc<[Template]> {
    let mut templates = ChatMix { templates: quality.len(), ..ChatMix::default() }.templates(fleet, seed);
    for (template, (quality, expected)) in templates.iter_mut().zip(quality.iter().zip(expected)) {
        template.quality.clone_from(quality);
        let estimates = template.outlook.iter_mut().flat_map(|outlook| &mut outlook.estimates);
        estimates.zip(expected).for_each(|((estimate, _), expected)| estimate.quality = *expected);
    }
    templates.into()
}

fn simulated(deployment: &Deployment<'_>, rule: &Rule<'_>, rate: f64, templates: &Arc<[Template]>) -> Vec<Outcome> {
    let mut config = config(deployment.setup);
    let contender = match rule {
        Rule::Prices(prices) => {
            let mut policy = ours(Weights { quality: 1.0, latency: 0.0, cost: 0.0 });
            (policy.objective, policy.prices) = (Objective::Prices, prices.to_vec());
            config.policies = vec![policy];
            config.default_policy = PolicyId::new(0);
            Contender::Ours
        }
        Rule::Contender(contender) => contender.clone(),
    };
    let router = Router::new(config, None);
    let times = Arrivals::Poisson { rate }.times(Duration::from_secs(120), 5);
    let workload = Workload::in_passes(templates.clone(), &times, 0, 5);
    let patient = Duration::from_secs(7_200);
    let options = Options { keep_decisions: false, per_try_idle: Some(patient), ..Options::default() };
    let mut simulation = Simulation::deciding_by(contender, &router, &workload, &[], options);
    simulation.finish(Duration::from_secs(36_000));
    simulation.into_outcomes()
}

/// On a small fleet near its capacity, at equal quality: who asks several models for an answer is slower, and who looks at no load
/// sends more to the large model than it can serve.
#[test]
fn rivals_of_equal_quality_are_slower() {
    let (planned, isolated) = (setup([3, 4, 3]), setup([1, 1, 1]));
    let all = config(&planned);
    let ((quality, expected), (check_quality, check_expected)) = (answers(800, 1), answers(800, 2));
    let checking = templates(&all.fleet, &check_quality, &check_expected, 2);
    let rates = sustainable_rates(&all.fleet, &checking);
    let shares: Vec<f64> = rates.iter().map(|rate| 0.7 * rate / RATE).collect();
    let scores = Scores::new(3, expected.iter().flatten().copied().collect()).unwrap();
    let prices = prices(&scores, &shares);
    let nowhere = Placement::default();
    let [planned, isolated] = [&planned, &isolated].map(|setup| Deployment { setup, placement: &nowhere });
    let panels = [Panel { rate: RATE, slo_ms: 300.0, planned, prices: &prices, isolated: Some(isolated) }];
    let ground = Ground {
        sizes: &[0, 1, 2],
        planning: Answers { quality: &quality, expected: &expected },
        checking: Answers { quality: &check_quality, expected: &check_expected },
        reliability: 0.8,
        warm_up: Duration::from_secs(20),
        seed: 3,
    };
    let rows = compare(&panels, &ground, |d, rule, rate| Ok(simulated(d, rule, rate, &checking))).unwrap();
    let names: Vec<(&str, &str)> = show::contenders(&rows);
    let expected =
        [(PRICES, PLANNED), (THRESHOLD, PLANNED), (CASCADE, PLANNED), (THRESHOLD, ISOLATED), (CASCADE, ISOLATED)];
    assert_eq!(names, expected);
    for row in &rows {
        assert!(row.is_equal && row.answered == row.requests && row.requests > 400, "{row:?}");
        assert!((row.quality - row.target_quality).abs() < 0.06, "other prompts, nearly the same quality: {row:?}");
        assert!((row.fractions.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{row:?}");
        assert_eq!(row.margin > 1.0, row.ttft_mean_ms > 300.0, "{row:?}");
        assert_eq!(row.answers > 1.0, row.policy == CASCADE, "only a cascade asks more than once: {row:?}");
        assert_eq!(row.knob.is_none(), row.policy == PRICES, "{row:?}");
        assert!(row.ttft_p95_ms >= row.ttft_mean_ms && (0.0..=1.0).contains(&row.late), "{row:?}");
    }
    let [plan, threshold, cascade, threshold_isolated, cascade_isolated] = &rows[..] else { panic!() };
    assert!(plan.ttft_mean_ms < threshold.ttft_mean_ms * 1.1, "{plan:?} {threshold:?}");
    assert!(cascade.ttft_mean_ms > 3.0 * plan.ttft_mean_ms, "{plan:?} {cascade:?}");
    assert!(threshold_isolated.ttft_mean_ms > threshold.ttft_mean_ms, "fewer copies are slower");
    assert!(cascade_isolated.ttft_mean_ms > cascade.ttft_mean_ms, "fewer copies are slower");
    let text = table(&rows, &["a".to_owned(), "b".to_owned(), "c".to_owned()]).to_string();
    assert!(text.contains("answers of a / b / c, %") && text.contains(CASCADE), "{text}");
    let picture = picture(&rows);
    assert!(picture.starts_with("<svg") && picture.contains("cascade, isolated") && picture.contains("limit"));
    let html = part(&rows, &["a".to_owned(), "b".to_owned(), "<c>".to_owned()]).content.into_string();
    assert!(html.contains("<figure") && html.contains("answered by a / b / &lt;c&gt;"), "{html}");
    let json = serde_json::to_value(&rows).unwrap();
    assert_eq!(json[2]["policy"], json!(CASCADE));
    assert_eq!(serde_json::from_value::<Vec<Row>>(json).unwrap(), rows);
}

#[test]
fn what_is_wrong_is_said() {
    let setup = setup([1, 1, 1]);
    let planned = Deployment { setup: &setup, placement: &Placement::default() };
    let (mixed, alike) = (vec![vec![0.0, 1.0, 1.0]], vec![vec![1.0; 3]]);
    for (name, prices, quality, outcome, expected) in [
        ("prices", vec![0.0], &mixed, true, "1 prices for 3 models"),
        ("a judge", vec![0.0; 3], &alike, true, "all are alike"),
        ("a run", vec![0.0; 3], &mixed, false, "prices on the planned setup at 50 requests per second: no such GPU"),
    ] {
        let panels = [Panel { rate: 50.0, slo_ms: 800.0, planned, prices: &prices, isolated: None }];
        let answers = Answers { quality, expected: quality };
        let ground = Ground {
            sizes: &[0, 1, 2],
            planning: answers,
            checking: answers,
            reliability: 0.8,
            warm_up: Duration::ZERO,
            seed: 3,
        };
        let result =
            compare(&panels, &ground, |_, _, _| if outcome { Ok(Vec::new()) } else { anyhow::bail!("no such GPU") });
        let problem = format!("{:#}", result.unwrap_err());
        assert!(problem.contains(expected), "{name}: {problem}");
    }
}
