//! Has the predictor's ONNX file compiled into the plan that the core executes.
//!
//! `src/onnx` does it. It is built apart, below `target/onnx`: the ONNX front end takes minutes to build, and as a build dependency it
//! would be built for every profile and once more for every set of features.

#![allow(
    clippy::disallowed_methods,
    reason = "Cargo tells build scripts by the environment, and processes are all they can start"
)]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

/// Names the ONNX file that is compiled in, relative to the repository; see models/README.md for what it must hold.
const FILE_VARIABLE: &str = "ROUTEBALANCE_PREDICTOR";
const FILE: &str = "models/predictor.onnx";
/// What onnxruntime made of the cases in this file, beside the ONNX file; the unit tests replay it.
const GOLDEN: &str = "golden.json";
const COMPILER: &str = "routebalance-onnx";
/// What Cargo tells the build of this crate and must not tell that of the compiler, which is for this machine, with its own flags.
const FOR_THIS_BUILD: [&str; 6] = [
    "CARGO_BUILD_TARGET",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_TARGET_DIR",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTFLAGS",
    "TARGET",
];

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let root = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("../..").canonicalize()?;
    let file = root.join(env::var(FILE_VARIABLE).unwrap_or_else(|_| FILE.to_owned()));
    println!("cargo::rerun-if-env-changed={FILE_VARIABLE}");
    for read in ["build.rs", "predictor/plan.rs", "../onnx/main.rs", "../onnx/fuse.rs", "../onnx/Cargo.toml"] {
        println!("cargo::rerun-if-changed={read}");
    }
    println!("cargo::rerun-if-changed={}", file.display());
    println!("cargo::rustc-env=ROUTEBALANCE_GOLDEN={}", file.with_file_name(GOLDEN).display());

    let out = PathBuf::from(env::var("OUT_DIR")?);
    let mut compiler = Command::new(env::var("CARGO")?);
    compiler.args(["run", "--quiet", "--package", COMPILER, "--profile", "onnx", "--target-dir"]).arg(target_dir(&out));
    compiler.arg("--").arg(&file).arg(&out).current_dir(&root);
    for name in FOR_THIS_BUILD {
        compiler.env_remove(name);
    }
    // What it prints would be taken for instructions to Cargo.
    let output = compiler.stdout(Stdio::null()).stderr(Stdio::piped()).output()?;
    if !output.status.success() {
        // As it stands: an error that `main` returns is shown with its lines joined.
        eprintln!("{}", String::from_utf8_lossy(&output.stderr));
        return Err(format!("{} is not compiled: see above", file.display()).into());
    }
    Ok(())
}

/// A folder for the compiler in Cargo's target directory, the outermost one above `out` that Cargo has tagged.
fn target_dir(out: &Path) -> PathBuf {
    let tagged = out.ancestors().filter(|folder| fs::exists(folder.join("CACHEDIR.TAG")).unwrap_or(false));
    tagged.last().unwrap_or(out).join("onnx")
}
