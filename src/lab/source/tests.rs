use std::path::Path;
use std::time::Duration;

use super::super::prompts::mean_output_tokens;
use super::*;
use crate::package_root;
use crate::statistics::mean_or_zero;
use routebalance_sim::simulation::{Options, Simulation};

const MOONCAKE: &str = "models/data/traces/mooncake_synthetic_trace.jsonl.gz";
const AZURE: &str = "models/data/traces/AzureLLMInferenceTrace_conv_2023.csv.gz";

fn config() -> Config {
    Config::parse(include_bytes!("../../../envoy/routebalance.json")).unwrap()
}

fn traced(file: &str, trace_lengths: TraceLengths) -> Source {
    let trace = Some(package_root().join(file));
    Source::open(&SourceArgs { trace, trace_lengths, ..SourceArgs::default() }, &config()).unwrap()
}

#[test]
fn arrivals_are_understood_or_refused_in_a_sentence() {
    let understood = [
        ("constant", "constant", None),
        ("poisson", "poisson", None),
        ("gamma:0.3", "gamma-0.3", None),
        ("square:40/6", "square-40-6", Some(23.0)),
        ("ramp:6-30", "ramp-6-30", Some(18.0)),
    ];
    for (text, name, rate) in understood {
        let kind: ArrivalKind = text.parse().unwrap();
        assert_eq!((kind.to_string().as_str(), kind.own_rate()), (name, rate), "{text}");
    }
    let refused = [
        ("", "\"\" is no kind of arrivals"),
        ("uniform", "\"uniform\" is no kind of arrivals: constant, poisson, gamma:0.3"),
        ("poisson:3", "poisson takes nothing after it, its rate is that of --rates"),
        ("gamma", "the shape must be a number from 0.01 to 1000000, is \"\""),
        ("gamma:-1", "the shape must be a number"),
        ("square:40", "square needs two rates, as square:40/6"),
        ("square:x/6", "the high rate must be a number"),
        ("ramp:6/30", "ramp needs two rates, as ramp:6-30"),
        ("ramp:0-0", "one of a ramp's rates must be at least 0.1"),
        ("ramp:6-NaN", "the last rate must be a number"),
    ];
    for (text, problem) in refused {
        let said = text.parse::<ArrivalKind>().unwrap_err();
        assert!(said.starts_with(problem), "{text}: {said}");
    }
}

#[test]
fn a_feed_is_as_asked_for_and_always_the_same() {
    let poisson = Source::built_in(&config(), ArrivalKind::Poisson, Some(1_024)).unwrap();
    assert_eq!((poisson.own_rate(), poisson.own_requests()), (None, 1_521));
    assert_eq!(poisson.feed(None, None, 0, 1).unwrap_err().to_string(), "poisson arrivals need a rate");
    let feed = poisson.feed(Some(12.0), Some(3_534), 2, 1).unwrap();
    assert_eq!(feed.workload.arrivals.len(), 3_534);
    let arrivals_of = |feed: &Feed| feed.workload.arrivals.clone();
    assert_eq!(arrivals_of(&feed), arrivals_of(&poisson.feed(Some(12.0), Some(3_534), 2, 1).unwrap()));
    assert_ne!(arrivals_of(&feed), arrivals_of(&poisson.feed(Some(12.0), Some(3_534), 2, 2).unwrap()));
    assert!(feed.workload.templates.iter().all(|t| t.prompt.max_tokens == Some(1_024)));
    let mut times = vec![0; 1_521];
    feed.workload.arrivals.iter().for_each(|a| times[a.template] += 1);
    assert!(times.iter().all(|n| (2..=3).contains(n)), "each prompt as often as the others");
    for (kind, rate, expected) in
        [("square:30/6", None, 18.0), ("ramp:6-30", Some(9.0), 9.0), ("gamma:0.3", Some(18.0), 18.0)]
    {
        let source = poisson.with_arrivals(kind.parse().unwrap());
        let arrivals = arrivals_of(&source.feed(rate, Some(20_000), 0, 1).unwrap());
        let measured = 20_000.0 / arrivals.last().unwrap().at.as_secs_f64();
        assert!((measured / expected - 1.0).abs() < 0.05, "{kind}: {measured}");
    }
    assert!(poisson.feed(Some(0.0), None, 0, 1).is_err());
}

#[test]
fn others_see_the_same_requests_with_other_eyes() {
    let source = Source::built_in(&config(), ArrivalKind::Poisson, Some(1_024)).unwrap();
    let feed = source.feed(Some(12.0), None, 0, 1).unwrap();
    let first = |workload: &Workload| workload.templates[0].outlook.clone().unwrap().estimates[1].0;
    for estimates in [Estimates::Ours, Estimates::Knn, Estimates::Truth, Estimates::Constant] {
        let seen = source.seen_by(&feed, estimates).unwrap();
        assert_eq!(seen.arrivals, feed.workload.arrivals);
        for (a, b) in feed.workload.templates.iter().zip(&*seen.templates) {
            assert_eq!((&a.output_tokens, &a.quality), (&b.output_tokens, &b.quality));
            assert_eq!(a.prompt.max_tokens, b.prompt.max_tokens);
            assert_eq!(a.outlook == b.outlook, estimates == Estimates::Ours, "{estimates:?}");
        }
        let (estimate, template) = (first(&seen), &feed.workload.templates[0]);
        let truth = (template.quality[1], f64::from(template.output_tokens[1]));
        match estimates {
            Estimates::Truth => assert_eq!((estimate.quality, estimate.output_tokens), truth),
            // As the data's card says.
            Estimates::Constant => assert!((estimate.quality - 0.521).abs() < 0.001, "{estimate:?}"),
            Estimates::Ours | Estimates::Knn => assert!((0.0..1.0).contains(&estimate.quality)),
        }
    }
    let largest = feed.chosen(&source, |o| o.routellm(0.0).index()).unwrap();
    assert_eq!(*largest, [3; 1_521]);
}

#[test]
fn a_trace_is_replayed_at_its_own_rate_or_another() {
    for lengths in [TraceLengths::Trace, TraceLengths::Prompt] {
        let source = traced(AZURE, lengths);
        assert_eq!(source.own_requests(), 19_365, "but for one of more than 8,192 tokens");
        assert!((source.own_rate().unwrap() - 5.53).abs() < 0.01);
        assert!(source.notes[1].contains("have longer prompts than any"), "{:?}", source.notes);
        let own = source.feed(None, None, 0, 1).unwrap();
        let faster = source.feed(Some(20.0), None, 0, 1).unwrap();
        let last = |feed: &Feed| feed.workload.arrivals.last().unwrap().at.as_secs_f64();
        assert!((last(&own) - 3_501.7).abs() < 1.0 && (last(&faster) - 19_365.0 / 20.0).abs() < 0.1);
        let template = |a: &Arrival| &own.workload.templates[a.template];
        let arrivals = own.workload.arrivals.iter();
        let prompt_tokens = mean_or_zero(arrivals.clone().map(|a| f64::from(template(a).prompt_tokens)));
        let output_tokens = mean_or_zero(arrivals.map(|a| mean_output_tokens(&source.fleet, template(a))));
        assert!((prompt_tokens / 1_153.0 - 1.0).abs() < 0.02, "{prompt_tokens}");
        // The trace's 211, or what the models answer to such prompts.
        assert_eq!((output_tokens / 211.0 - 1.0).abs() < 0.01, lengths == TraceLengths::Trace, "{output_tokens}");
        let some = source.feed(None, Some(100), 0, 1).unwrap();
        assert_eq!(some.workload.arrivals[..], own.workload.arrivals[..100]);
        assert!(some.workload.templates.len() <= 100);
        assert!(source.feed(None, Some(20_000), 0, 1).unwrap_err().to_string().contains("19365 are recorded"));
    }
}

/// Enough is shared to be worth a prefix cache.
#[test]
fn a_trace_s_blocks_reach_the_workload() {
    let source = traced(MOONCAKE, TraceLengths::Trace);
    assert!(source.notes[0].contains("2121 of 3993 requests have more tokens than any instance holds (8192)"));
    let feed = source.feed(None, None, 0, 1).unwrap();
    let mut seen = std::collections::BTreeSet::new();
    let (mut shared, mut all) = (0, 0);
    for arrival in &feed.workload.arrivals {
        let template = &feed.workload.templates[arrival.template];
        assert_eq!(template.blocks.len() as u32, template.prompt_tokens / routebalance_sim::engine::BLOCK_TOKENS);
        all += template.blocks.len();
        shared += template.blocks.iter().filter(|block| !seen.insert(**block)).count();
    }
    let share = shared as f64 / all as f64;
    assert!((0.5..0.8).contains(&share), "{share} of the blocks came before");
}

#[test]
fn a_log_is_replayed_as_it_was() {
    let log = Some(package_root().join("tests/fixtures/access-log/access.log"));
    let source = Source::open(&SourceArgs { from_access_log: log, ..SourceArgs::default() }, &config()).unwrap();
    let feed = source.feed(None, None, 1, 1).unwrap();
    let kinds: Vec<usize> = feed.workload.arrivals.iter().map(|a| a.template).collect();
    assert_eq!(kinds, (0..17).collect::<Vec<_>>());
    assert_eq!(feed.workload.arrivals[1].at, Duration::from_millis(134));
    assert_eq!(source.name(), "access-log");
    assert!(source.seen_by(&feed, Estimates::Knn).is_none(), "nobody asked the paper's neighbours");
    assert!(feed.chosen(&source, |o| o.largest().index()).is_none());
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let missing = Some(Path::new("no/such.csv").to_owned());
    let problem = Source::open(&SourceArgs { trace: missing, ..SourceArgs::default() }, &config()).unwrap_err();
    assert_eq!(problem.to_string(), "no/such.csv cannot be read");
}

#[test]
fn arguments_exclude_each_other() {
    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        source: SourceArgs,
    }
    let parse = |line: &str| {
        let cli = <Cli as clap::Parser>::try_parse_from(std::iter::once("lab").chain(line.split_whitespace()));
        cli.map(|cli| cli.source).map_err(|problem| problem.to_string())
    };
    assert_eq!(parse("").unwrap().arrivals, ArrivalKind::Poisson);
    assert_eq!(parse("--arrivals gamma:0.3").unwrap().arrivals, ArrivalKind::Gamma { shape: 0.3 });
    let own = parse("--trace a.csv --prompts b.jsonl --trace-lengths prompt --output-cap 1024").unwrap();
    assert_eq!((own.trace_lengths, own.output_cap), (TraceLengths::Prompt, Some(1_024)));
    assert!(parse("--from-access-log a.log").is_ok());
    let refused = [
        ("--arrivals gamma", "the shape must be a number from 0.01"),
        ("--arrivals constant --trace a.csv", "cannot be used with"),
        ("--from-access-log a.log --trace a.csv", "cannot be used with"),
        ("--from-access-log a.log --prompts b.jsonl", "cannot be used with"),
        ("--trace-lengths prompt", "--trace <FILE>"),
        ("--output-cap 0", "0 is not in 1.."),
    ];
    for (line, problem) in refused {
        let said = parse(line).unwrap_err();
        assert!(said.contains(problem), "{line}: {said}");
    }
}

/// Whatever requests come from, the router decides them and the fleet answers them.
#[test]
fn what_is_fed_is_served() {
    let config = config();
    let log = Some(package_root().join("tests/fixtures/access-log/access.log"));
    let logged = Source::open(&SourceArgs { from_access_log: log, ..SourceArgs::default() }, &config).unwrap();
    let sources = [
        (Source::built_in(&config, ArrivalKind::Poisson, Some(1_024)).unwrap(), Some(2.0), 100),
        (traced(AZURE, TraceLengths::Trace), Some(2.0), 100),
        (traced(MOONCAKE, TraceLengths::Prompt), Some(1.0), 50),
        (logged, None, 17),
    ];
    let router = Router::new(config, None);
    for (source, rate, requests) in sources {
        let feed = source.feed(rate, Some(requests), router.config().default_policy.index(), 1).unwrap();
        let mut simulation = Simulation::new(&router, &feed.workload, &[], Options::default());
        simulation.finish(Duration::from_secs(100_000));
        let outcomes = simulation.outcomes();
        assert_eq!(outcomes.len(), requests, "{}", source.name());
        assert!(outcomes.iter().all(|o| o.is_answered()), "{}", source.name());
    }
}
