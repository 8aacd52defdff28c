//! The kept inputs of every fuzzing target, and some minutes' worth of new ones.
//!
//! `ROUTEBALANCE_FUZZ_SECONDS` says for how long callbacks are tried, `ROUTEBALANCE_FUZZ_SEED` repeats a run.

#![allow(clippy::disallowed_methods, reason = "tests are told how long to take")]

use std::hash::{BuildHasher, RandomState};
use std::io::Write as _;
use std::time::Duration;

use routebalance_fuzz::session::{self, Failure, Until};
use routebalance_fuzz::{TARGETS, Target, corpus};

/// How long callbacks are tried, unless something else is said, and how long each parser is.
const CALLBACKS: Duration = Duration::from_secs(60);
const PARSER: Duration = Duration::from_secs(2);

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{variable} is no number")))
}

/// Shows the shortest input that was found.
fn fail(target: Target, failure: Failure) -> ! {
    let Failure { input, message } = session::shortened(target, failure);
    let path = corpus::keep(&std::env::temp_dir().join("routebalance-fuzz"), &input).expect("a folder for the input");
    panic!(
        "{message}\nagain: cargo run --profile fuzz -p routebalance-fuzz -- {} --input {}",
        target.name,
        path.display()
    );
}

#[test]
fn what_was_found_once_stays_mended() {
    for target in TARGETS {
        let inputs = corpus::committed(target.name).expect("a corpus");
        assert!(!inputs.is_empty(), "{} has no inputs", target.name);
        if let Some(failure) = session::replay(target, &inputs) {
            fail(target, failure);
        }
    }
}

#[test]
fn nothing_new_is_found() {
    let seed = number("ROUTEBALANCE_FUZZ_SEED").unwrap_or_else(|| RandomState::new().hash_one(0));
    // Past what holds back the output of tests that pass: who reads the log of a run wants the seed, whatever has come of it.
    let _ = writeln!(std::io::stderr(), "ROUTEBALANCE_FUZZ_SEED={seed}");
    for target in TARGETS {
        let time = match target.name {
            "callbacks" => number("ROUTEBALANCE_FUZZ_SECONDS").map_or(CALLBACKS, Duration::from_secs),
            _ => PARSER,
        };
        let inputs = corpus::committed(target.name).expect("a corpus");
        let outcome = session::run(target, &inputs, seed, 1, Until::Time(time));
        println!("{}: {} executions, {} things reached", target.name, outcome.executions, outcome.reached);
        assert!(outcome.executions > 0, "{} was not tried", target.name);
        if let Some(failure) = outcome.failure {
            fail(target, failure);
        }
    }
}
