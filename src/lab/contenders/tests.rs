use super::*;
use crate::builtin;
use routebalance_core::fleet::ModelId;
use routebalance_core::router::Router;

const UNIFORM: Weights = Weights { quality: 1.0 / 3.0, latency: 1.0 / 3.0, cost: 1.0 / 3.0 };

/// Some of the lab's prompts, with everything that contenders ask for.
struct Bench {
    config: Config,
    templates: Arc<[Template]>,
    opinions: Vec<Arc<Opinions>>,
    fits: Fits,
}

impl Bench {
    fn new(prompts: usize) -> Bench {
        let config = Config::parse(include_bytes!("../../../envoy/routebalance.json")).unwrap();
        let mut set = builtin::prompts(&Router::new(config.clone(), None)).unwrap().prompts;
        set.truncate(prompts);
        let opinions = set.iter().map(|p| p.opinions.clone().unwrap()).collect();
        let templates: Arc<[Template]> = set.into_iter().map(|p| p.template).collect();
        let fits = Fits::default();
        // A short sweep: the whole one is for release builds.
        let (fitted, accuracies) = sweep::fitted(&config, &templates, 30);
        fits.0.set((Arc::new(fitted), accuracies)).unwrap();
        Bench { config, templates, opinions, fits }
    }

    fn lab(&self, rate: f64) -> LabInputs<'_> {
        let (config, templates, fits) = (&self.config, &self.templates, &self.fits);
        LabInputs { config, templates, opinions: Some(&self.opinions), rate, fits }
    }
}

#[test]
fn every_name_has_its_entrants() {
    let bench = Bench::new(60);
    let lab = bench.lab(12.0);
    let latency = Weights { quality: 0.1, latency: 0.8, cost: 0.1 };
    for name in NAMES {
        let [headline, all] = [Knobs::Headline, Knobs::All].map(|knobs| {
            let entrants = entrants(name, knobs, &[UNIFORM, latency], &lab).unwrap();
            let mut keys: Vec<String> = entrants.iter().map(|e| format!("{} {:?}", e.setting, e.weights)).collect();
            keys.sort();
            keys.dedup();
            assert_eq!(keys.len(), entrants.len(), "{name}: a setting is there once");
            assert!(entrants.iter().all(|e| e.policy == name), "{name}");
            assert!(entrants.iter().all(|e| (e.contender_is_ours()) == e.route_policy.is_some()), "{name}");
            entrants
        });
        assert!(!headline.is_empty() && headline.len() <= all.len(), "{name}");
        let settings: Vec<&str> = all.iter().map(|e| e.setting.as_str()).collect();
        assert!(headline.iter().all(|e| settings.contains(&e.setting.as_str())), "{name}: {settings:?}");
    }
    let problem = entrants("best", Knobs::All, &[], &lab).unwrap_err().to_string();
    assert!(problem.starts_with("there is no contender best: there are routebalance, "), "{problem}");
    let unknown = LabInputs { opinions: None, ..lab };
    for name in ["best-route", "avengers-pro", "routellm", "vllm-sr"] {
        let problem = entrants(name, Knobs::All, &[], &unknown).unwrap_err().to_string();
        assert!(problem.starts_with(name), "{problem}");
    }
}

impl Entrant {
    fn contender_is_ours(&self) -> bool {
        matches!(self.contender, Contender::Ours)
    }
}

/// The models of pipelines' choices, as shares.
fn shares(name: &str, setting: &str, lab: &LabInputs<'_>) -> Vec<f64> {
    let all = entrants(name, Knobs::All, &[UNIFORM], lab).unwrap();
    let entrant = all.into_iter().find(|e| e.setting.starts_with(setting)).unwrap();
    let Contender::Pipeline { models: Some(models), .. } = entrant.contender else { panic!("{name} is a pipeline") };
    let count =
        |m: usize| models.iter().filter(|model| **model == ModelId::new(m)).count() as f64 / models.len() as f64;
    (0..4).map(count).collect()
}

#[test]
fn pipelines_choose_models_as_their_rules_say() {
    let bench = Bench::new(1_521);
    let lab = bench.lab(12.0);
    let rows = [
        ("cheapest-adequate", "quality 0.5", [0.0, 1.0, 0.0, 0.0]),
        ("cheapest-adequate", "quality 0.6", [0.0, 0.0, 1.0, 0.0]),
        ("best-route", "concurrent, threshold 0.7, else second largest", [0.0, 0.0, 1.0, 0.0]),
        ("best-route", "concurrent, threshold 0.7, else smallest", [1.0, 0.0, 0.0, 0.0]),
        ("routellm", "threshold 0.11593", [0.0, 0.0, 0.0, 1.0]),
    ];
    for (name, setting, expected) in rows {
        for (share, expected) in shares(name, setting, &lab).iter().zip(expected) {
            assert!((share - expected).abs() < 0.02, "{name}, {setting}: {share} instead of {expected}");
        }
    }
    let (quality, cost) = (shares("quality-only", "", &lab), shares("cost-only", "", &lab));
    assert!(quality[3] > 0.5 && quality[0] < 0.05, "{quality:?}");
    assert!(cost[2] + cost[3] < 0.05, "{cost:?}");
}

/// The dearer the less there is of it: prices rise with the rate, and the small models' are 0.
#[test]
fn prices_follow_the_rate() {
    let bench = Bench::new(300);
    let prices = |rate: f64| {
        let entrants = entrants("prices", Knobs::Headline, &[], &bench.lab(rate)).unwrap();
        entrants[0].route_policy.clone().unwrap().prices
    };
    let (idle, busy) = (prices(0.1), prices(30.0));
    assert_eq!(idle, [0.0; 5]);
    assert!(busy[3] > 0.0 && busy[3] > busy[1], "{busy:?}");
}
