use super::*;
use crate::planning::measure::{self, MeasuredModel, Measuring};
use crate::planning::sample::Half;
use routebalance_core::fleet::InstanceId;
use routebalance_plan::problem::{Beyond, Goal, GpuKind, PlannedModel, ShardMemory, Space};
use routebalance_plan::scores::Scores;

const MODELS: [&str; 2] = ["Qwen2.5-Coder-7B-Instruct", "Phi-3-medium-4k-instruct"];
const SIZES: [ModelSize; 2] = [
    ModelSize { weights_gb: 15.2, layers: 28.0, kv_bytes_per_token: 57_344.0, max_model_len: 4_096 },
    ModelSize { weights_gb: 28.0, layers: 40.0, kv_bytes_per_token: 204_800.0, max_model_len: 4_096 },
];

fn names() -> Vec<String> {
    MODELS.map(str::to_owned).to_vec()
}

fn problem(interference: f64) -> Problem {
    let model = |(name, size): (&str, ModelSize)| PlannedModel { name: name.to_owned(), weights_gb: size.weights_gb };
    Problem {
        models: MODELS.into_iter().zip(SIZES).map(model).collect(),
        kinds: vec![GpuKind { name: "A100-80GB".to_owned(), count: 2, memory_gb: 80.0, usd_per_hour: 1.0 }],
        memory: ShardMemory { factor: 1.1, fixed_gb: 4.0 },
        space: Space {
            tensor_parallel: vec![1, 2],
            shares_percent: vec![50, 100],
            replicas: vec![0, 1],
            compute_min: 0.0,
            oversubscribe: false,
            interference: Some(interference),
        },
        profiles: Vec::new(),
        beyond: Beyond::Never,
        scores: Scores::new(2, vec![0.5, 0.5]).unwrap(),
        levels: Vec::new(),
        limits: Vec::new(),
        goal: Goal::Score,
        score_min: 0.0,
    }
}

fn choice(tensor_parallel: u32, share_percent: u32, replicas: u32) -> Choice {
    Choice { kind: 0, tensor_parallel, share_percent, replicas }
}

fn routing(prices: [f64; 2]) -> Routing {
    Routing {
        rate: 0.0,
        fractions: Vec::new(),
        prices: prices.to_vec(),
        score: 0.0,
        score_bound: 0.0,
        limits_ms: Vec::new(),
        ttft_ms: Vec::new(),
        slow_down: Vec::new(),
    }
}

#[test]
fn a_setup_becomes_a_fleet() {
    let problem = problem(0.3);
    let setup = Setup(vec![choice(1, 50, 2), choice(2, 40, 1)]);
    let placement = Placement { gpus: vec![vec![vec![0], vec![1]], vec![vec![0, 1]]] };
    let deployed = deploy(&problem, &SIZES, &setup, &placement, &[0.1, 0.0]).unwrap();
    let fleet = &deployed.config.fleet;
    assert_eq!(fleet.pools.iter().map(|p| p.instances.len()).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(deployed.config.policies[0].prices, [0.1, 0.0]);
    let sharing = deployed.sharing.unwrap();
    assert_eq!(sharing.neighbours(InstanceId::new(2)), [0, 1].map(InstanceId::new));
    assert_eq!(sharing.slow_down(InstanceId::new(2), &[true, false, true]), 1.15);
    let a100 = Device::named("A100-80GB").unwrap();
    assert_eq!(fleet.pools[1].profile, a100.profile(&SIZES[1], 2, 40));
    // On each GPU 15.2 * 1.1 + 4 and 14 * 1.1 + 4 GB, of the rest 4 parts of 9, and 2 GB.
    let kv_gb = 2.0 + (80.0 - 20.72 - 19.4) * 4.0 / 9.0;
    assert_eq!(fleet.pools[1].limits.kv_tokens, (kv_gb * 1e9 * 2.0 / 204_800.0) as u64);
    let alone = Setup(vec![Choice::NONE, choice(1, 100, 1)]);
    let placement = Placement { gpus: vec![vec![], vec![vec![1]]] };
    let deployed = deploy(&problem, &SIZES, &alone, &placement, &[0.1, 0.2]).unwrap();
    assert_eq!((deployed.models.as_slice(), deployed.config.policies[0].prices.as_slice()), (&[1][..], &[0.2][..]));
    let none = deploy(&problem, &SIZES, &Setup(vec![Choice::NONE; 2]), &Placement::default(), &[]);
    assert_eq!(none.unwrap_err().to_string(), "no model is deployed");
    let wrong = deploy(&problem, &SIZES, &setup, &Placement::default(), &[0.0, 0.0]).unwrap_err().to_string();
    assert_eq!(wrong, "Qwen2.5-Coder-7B-Instruct: its placement is not that of its setup");
}

/// A copy that is alone does in a check what its profile says, and one with a neighbour that is always at work what its profile
/// says of a copy that is slowed down.
#[test]
fn profiles_foretell_what_happens() {
    let sample = |half| Sample::shipped(&names(), half).unwrap();
    let (planning, checking) = (sample(Half::Planning), sample(Half::Checking));
    let measured = Measuring {
        models: names()
            .into_iter()
            .zip(SIZES)
            .take(1)
            .map(|(name, size)| MeasuredModel { model: PlannedModel { name, weights_gb: size.weights_gb }, size })
            .collect(),
        devices: vec![*Device::named("A100-80GB").unwrap()],
        memory: problem(0.0).memory,
        tensor_parallel: vec![1],
        shares_percent: vec![50],
        max_tokens: Some(32),
        seed: 1,
    };
    let profiles = measure::run(&measured, &planning).unwrap();
    let point = profiles[0].points[5];
    let cases = [
        ("alone", vec![vec![0]], Choice::NONE, vec![], 1.0),
        ("with a neighbour", vec![vec![0]], choice(1, 50, 1), vec![vec![0]], 1.15),
    ];
    for (name, first, other, second, slow_down) in cases {
        let problem = problem(0.3);
        let setup = Setup(vec![choice(1, 50, 1), other]);
        let placement = Placement { gpus: vec![first, second] };
        let checking = Checking {
            problem: &problem,
            sizes: &SIZES,
            sample: &checking,
            max_tokens: Some(32),
            requests: 6_000,
            runs: 2,
            seed: 50,
        };
        // The neighbour gets the fifth of the requests for which it is expected to be the better by most, enough to be always busy.
        let share = if other.replicas == 0 { 1.0 } else { 0.8 };
        let prices = routebalance_plan::prices::prices(&checking.sample.scores().unwrap(), &[share, 1.0 - share]);
        let rate = point.rate / slow_down / share;
        let checked = check(&checking, &setup, &placement, &routing([prices[0], prices[1]]), &[rate]).unwrap();
        let [checked] = checked.as_slice() else { panic!("{} results", checked.len()) };
        assert!(checked.failed == 0 && (checked.models[0].share - share).abs() < 0.01, "{name}: {checked:?}");
        let fixed_ms = profiles[0].fixed_ms;
        let predicted = fixed_ms + slow_down * (point.ttft.mean_ms - fixed_ms);
        let simulated = checked.models[0].ttft_mean_ms;
        assert!((predicted / simulated - 1.0).abs() < 0.05, "{name}: {predicted} ms, simulated {simulated}");
        assert!(checked.ttft_percentiles_ms.is_sorted() && checked.score > 0.5 && checked.score_expected > 0.5);
    }
}
