use super::*;
use crate::planning::sample::Half;
use routebalance_core::fleet::ModelId;
use routebalance_plan::device::ModelSize;
use routebalance_plan::problem::{Beyond, Goal, GpuKind, PlannedModel, ShardMemory, Space};
use routebalance_plan::setup::Choice;
use routebalance_sim::contender::Dispatcher;

const MODELS: [(&str, f64, f64, f64); 3] = [
    ("Qwen2.5-Coder-7B-Instruct", 7.6, 28.0, 57_344.0),
    ("Phi-3-medium-4k-instruct", 14.0, 40.0, 204_800.0),
    ("Yi-1.5-34B-Chat", 34.4, 60.0, 245_760.0),
];

fn problem() -> Problem {
    Problem {
        models: MODELS.map(|(name, b, ..)| PlannedModel { name: name.to_owned(), weights_gb: 2.0 * b }).to_vec(),
        kinds: vec![GpuKind { name: "A100-80GB".into(), count: 4, memory_gb: 80.0, usd_per_hour: 0.99 }],
        memory: ShardMemory { factor: 1.1, fixed_gb: 4.0 },
        space: Space {
            tensor_parallel: vec![1, 2, 4],
            shares_percent: vec![50, 100],
            replicas: vec![1],
            compute_min: 1.0,
            oversubscribe: false,
            interference: Some(0.25),
        },
        profiles: Vec::new(),
        beyond: Beyond::Never,
        scores: sample(Half::Planning).scores().unwrap(),
        levels: Vec::new(),
        limits: Vec::new(),
        goal: Goal::Score,
        score_min: 0.0,
    }
}

fn sample(half: Half) -> Sample {
    Sample::shipped(&MODELS.map(|(name, ..)| name.to_owned()), half).unwrap()
}

fn sizes() -> Vec<ModelSize> {
    let size =
        |(_, b, layers, kv)| ModelSize { weights_gb: 2.0 * b, layers, kv_bytes_per_token: kv, max_model_len: 4_096 };
    MODELS.map(size).to_vec()
}

#[test]
fn isolated_models_share_no_gpu() {
    let problem = problem();
    let (setup, placement) = isolated(&problem).unwrap();
    let shares: Vec<u32> = setup.0.iter().map(Choice::compute_percent).collect();
    assert_eq!(shares, [100, 100, 200], "the largest model has two GPUs");
    let mut gpus: Vec<usize> = placement.gpus.into_iter().flatten().flatten().collect();
    gpus.sort_unstable();
    assert_eq!(gpus, [0, 1, 2, 3]);
}

/// Models keep the problem's numbers, whichever of them are deployed, and every rule is asked the same.
#[test]
fn outcomes_are_of_the_problem_s_models() {
    let problem = problem();
    let (sizes, sample) = (sizes(), sample(Half::Checking));
    let checking = Checking {
        problem: &problem,
        sizes: &sizes,
        sample: &sample,
        max_tokens: Some(16),
        requests: 0,
        runs: 1,
        seed: 5,
    };
    let one = |replicas| Choice { kind: 0, tensor_parallel: 2, share_percent: 100, replicas };
    let setup = Setup(vec![Choice::NONE, one(1), one(1)]);
    let placement = Placement { gpus: vec![vec![], vec![vec![0, 1]], vec![vec![2, 3]]] };
    let deployment = Deployment { setup: &setup, placement: &placement };
    let course = Duration::from_secs(10);
    let run = |rule: &Rule<'_>| simulated(&checking, course, &deployment, rule, 10.0);
    let cascade = |models: Vec<usize>| {
        let turned_down = (0..sample.prompts.len()).map(|i| i % 2).collect();
        let judging = Duration::from_millis(20);
        let dispatcher = Dispatcher::ShortestQueue;
        Rule::Contender(Contender::Cascade(Cascade {
            models: models.into_iter().map(ModelId::new).collect(),
            turned_down,
            judging,
            dispatcher,
        }))
    };
    let pipeline = |model: usize| {
        let models = Some(vec![ModelId::new(model); sample.prompts.len()].into());
        Rule::Contender(Contender::Pipeline { models, dispatcher: Dispatcher::ShortestQueue })
    };
    let by_price = run(&Rule::Prices(&[0.0, 1.0, 0.0])).unwrap();
    assert!(
        by_price.len() > 50 && by_price.iter().all(|o| o.is_answered() && o.model == Some(ModelId::new(2))),
        "the other costs 1"
    );
    let other_price = run(&Rule::Prices(&[0.0, 0.0, 1.0])).unwrap();
    assert!(other_price.iter().all(|o| o.model == Some(ModelId::new(1))));
    let cascaded = run(&cascade(vec![1, 2])).unwrap();
    for (outcome, same) in cascaded.iter().zip(&by_price) {
        assert_eq!((outcome.at, outcome.template), (same.at, same.template), "every rule is asked the same");
        let models: Vec<usize> = outcome.answers().map(|answer| answer.model.index()).collect();
        assert_eq!(models, [1, 2][..=outcome.template % 2]);
    }
    assert!(run(&pipeline(1)).unwrap().iter().all(|o| o.model == Some(ModelId::new(1))));
    let problem = run(&pipeline(0)).unwrap_err().to_string();
    assert_eq!(problem, "model 0 is not deployed");
}
