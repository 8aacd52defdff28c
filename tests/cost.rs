//! What a request costs, counted and not timed: the fuel that an interpreter charges for the module's instructions, crossings between the
//! module and its host, allocations of the core, bytes of the module. A change that raises one fails here, with the number.
//!
//! `tests/record/cost.json` has the numbers, and the rustc that they hold for: another one only prints its own. `UPDATE_COST=1 cargo
//! test --test cost` rewrites them, and the commit says why.

#![allow(clippy::disallowed_methods, reason = "tests start processes")]

#[path = "cost/core.rs"]
mod core;
#[path = "cost/module.rs"]
mod module;
#[path = "cost/vm.rs"]
mod vm;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use routebalance_cli::setup::{build_filter, package_root};
use serde::{Deserialize, Serialize};

/// By how much a number may be above the recorded one, as a share: a changed sentence of an error moves addresses, and with them how a
/// little of the code is compiled.
const ROOM: f64 = 0.01;

/// Numbers by what they count.
type Counts = BTreeMap<String, u64>;

/// What is recorded.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Record {
    rustc: String,
    counts: Counts,
}

fn record_path() -> PathBuf {
    package_root().join("tests/record/cost.json")
}

fn rustc() -> String {
    let output = Command::new("rustc").arg("--version").output().expect("rustc is there where cargo is");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn a_request_costs_no_more_than_it_did() {
    let module = build_filter().expect("the module builds");
    let mut counts = module::counts(&module);
    counts.extend(core::allocations());
    counts.insert("module bytes".to_owned(), fs::metadata(&module).expect("the module is there").len());
    let measured = Record { rustc: rustc(), counts };
    let path = record_path();
    if std::env::var_os("UPDATE_COST").is_some() {
        let text = serde_json::to_string_pretty(&measured).expect("numbers are JSON");
        fs::write(&path, text + "\n").expect("tests/record is writable");
        return;
    }
    let recorded: Record =
        serde_json::from_slice(&fs::read(&path).expect("tests/record/cost.json is there")).expect("a record");
    let rows: Vec<String> = measured.counts.iter().map(|(what, count)| row(what, *count, &recorded.counts)).collect();
    // Past the harness, which keeps the output of tests that pass to itself.
    let _ = writeln!(std::io::stderr(), "{}", rows.join("\n"));
    if recorded.rustc != measured.rustc {
        let _ = writeln!(std::io::stderr(), "Recorded with {}: not compared.", recorded.rustc);
        return;
    }
    let raised: Vec<&str> = rows.iter().filter(|row| row.ends_with(RAISED)).map(String::as_str).collect();
    assert!(
        raised.is_empty(),
        "a request costs more than it did:\n{}\nIf it should, `UPDATE_COST=1 cargo test --test cost` rewrites the record, and the commit \
         says why.",
        raised.join("\n")
    );
    let gone: Vec<&String> = recorded.counts.keys().filter(|what| !measured.counts.contains_key(*what)).collect();
    assert!(gone.is_empty(), "nobody counts {gone:?}");
}

const RAISED: &str = "RAISED";

/// What was counted beside what is recorded.
fn row(what: &str, count: u64, recorded: &Counts) -> String {
    let before = recorded.get(what).copied();
    let is_raised = before.is_none_or(|before| count as f64 > before as f64 * (1.0 + ROOM));
    let before = before.map_or("nothing".to_owned(), |before| before.to_string());
    format!("{what}: {count}, recorded {before}{}", if is_raised { format!(": {RAISED}") } else { String::new() })
}

#[test]
fn a_raise_is_seen_and_a_fall_is_not_one() {
    let recorded = Counts::from([("fuel".to_owned(), 1_000)]);
    for (count, is_raised) in [(900, false), (1_000, false), (1_010, false), (1_011, true)] {
        assert_eq!(row("fuel", count, &recorded).ends_with(RAISED), is_raised, "{count}");
    }
    assert!(row("something new", 1, &recorded).ends_with(RAISED), "a count that nobody has recorded");
}
