//! Golden runs of the simulator: what the lab measures, byte for byte. A change of one is explained by the commit that makes it.

#![allow(clippy::disallowed_methods, reason = "tests start processes")]

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use routebalance_cli::setup::package_root;

/// The runs: the file's name and the arguments of `evaluate`.
const RUNS: [(&str, &[&str]); 2] =
    [("quick", &["--preset", "quick"]), ("scenarios", &["--preset", "scenarios", "--seeds", "100"])];

#[test]
fn runs_are_as_they_were() {
    let rewrites = std::env::var_os("UPDATE_GOLDEN").is_some();
    let directory = package_root().join("tests/golden");
    let mut changed = Vec::new();
    for (name, arguments) in RUNS {
        let fresh = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("golden-{name}.json"));
        let output = Command::new(env!("CARGO_BIN_EXE_routebalance"))
            .arg("evaluate")
            .args(arguments)
            .arg("--json")
            .arg(&fresh)
            .current_dir(package_root())
            .output()
            .expect("the command runs");
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        let measured = fs::read(&fresh).expect("evaluate writes its result");
        let golden = directory.join(format!("{name}.json"));
        if rewrites {
            fs::write(&golden, &measured).expect("tests/golden is writable");
        } else if fs::read(&golden).expect("the golden run is there") != measured {
            changed.push(format!("diff {} {}", golden.display(), fresh.display()));
        }
    }
    assert!(
        changed.is_empty(),
        "golden runs have changed:\n{}\nIf they should, `UPDATE_GOLDEN=1 cargo test --test golden` rewrites them, and the \
         commit says why.",
        changed.join("\n")
    );
}
