//! What a fresh machine lacks: the wasm targets, the module, the test runner for Node. Every failure is a sentence that says
//! what to do.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};

/// The target of the module.
pub const FILTER_TARGET: &str = "wasm32-wasip1";
/// The target of the core's tests in Node.
pub const NODE_TARGET: &str = "wasm32-unknown-unknown";

const LOCK_FILE: &str = include_str!("../../Cargo.lock");

/// The directory of `Cargo.toml`: where `cargo run` and `cargo test` say it is, else where this binary was compiled.
pub fn package_root() -> PathBuf {
    env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from)
}

/// Cargo's target directory of this package; downloads are cached in it.
pub fn target_dir() -> PathBuf {
    // A relative CARGO_TARGET_DIR counts from the directory in which cargo was started, which is also ours.
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| package_root().join("target"), PathBuf::from)
}

/// Makes sure that rustc can compile for `target`, installing it with rustup if it is missing.
pub fn ensure_target(target: &str) -> Result<()> {
    if has_target(target)? {
        return Ok(());
    }
    eprintln!("Installing the Rust target {target} ...");
    let status = match Command::new("rustup").args(["target", "add", target]).status() {
        Ok(status) => status,
        Err(e) if e.kind() == ErrorKind::NotFound => bail!(
            "Rust cannot compile for {target} here and there is no rustup: install the standard library of {target} with your \
             package manager, or Rust from https://rustup.rs"
        ),
        Err(e) => return Err(e).context("rustup did not start"),
    };
    if !status.success() || !has_target(target)? {
        bail!("`rustup target add {target}` failed: check the network, run it by hand, and try again");
    }
    Ok(())
}

/// Asks rustc rather than rustup: distributions ship targets without rustup.
fn has_target(target: &str) -> Result<bool> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(&rustc)
        .args(["--print", "target-libdir", "--target", target])
        .current_dir(package_root())
        .output()
        .with_context(|| format!("{} did not start: install Rust from https://rustup.rs", rustc.display()))?;
    let libdir = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let holds_std = |dir: fs::ReadDir| dir.flatten().any(|e| e.file_name().to_string_lossy().starts_with("libstd-"));
    Ok(output.status.success() && fs::read_dir(libdir).is_ok_and(holds_std))
}

/// Builds the module with `cargo filter` and returns its path. Cargo shows its progress on standard error.
pub fn build_filter() -> Result<PathBuf> {
    build("the module", &[])
}

/// Builds the least that a filter can do, which benchmarks compare the module with, and returns its path.
pub fn build_floor() -> Result<PathBuf> {
    build("the minimal filter", &["--example", "floor"])
}

fn build(what: &str, more: &[&str]) -> Result<PathBuf> {
    ensure_target(FILTER_TARGET)?;
    eprintln!("Building {what} (cargo filter) ...");
    let mut child = Command::new(cargo())
        .args(["filter", "--message-format=json-render-diagnostics"])
        .args(more)
        .current_dir(package_root())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cargo did not start: install Rust from https://rustup.rs")?;
    let messages = child.stdout.take().context("cargo has no output")?;
    let mut module = None;
    for line in BufReader::new(messages).lines() {
        module = wasm_artifact(&line?).or(module);
    }
    if !child.wait()?.success() {
        bail!("`cargo filter` failed: its messages are above");
    }
    module.context("`cargo filter` built no .wasm file")
}

/// The module's path, if this line of cargo's JSON messages announces it.
fn wasm_artifact(line: &str) -> Option<PathBuf> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    if message.get("reason")? != "compiler-artifact" {
        return None;
    }
    let files = message.get("filenames")?.as_array()?.iter().filter_map(|f| f.as_str());
    files.map(PathBuf::from).find(|f| f.extension().is_some_and(|e| e == "wasm"))
}

fn cargo() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// The runner that executes the core's tests in Node: the one on PATH if it has the version that `Cargo.lock` names, else
/// one installed below `target/tools`.
pub fn wasm_bindgen_runner() -> Result<PathBuf> {
    const RUNNER: &str = "wasm-bindgen-test-runner";
    Command::new("node").arg("--version").output().map_err(|_| {
        anyhow!("the core's tests run in Node, and there is no `node` on PATH: install Node 20 or later")
    })?;
    let version = locked_version(LOCK_FILE, "wasm-bindgen").context("Cargo.lock does not name wasm-bindgen")?;
    if let Some(found) = on_path(RUNNER).filter(|r| runner_version(r).as_deref() == Some(version)) {
        return Ok(found);
    }
    let root = target_dir().join("tools");
    let runner = root.join("bin").join(RUNNER);
    fs::create_dir_all(&root)?;
    let _lock = lock(&root.join("lock"))?;
    if runner_version(&runner).as_deref() == Some(version) {
        return Ok(runner);
    }
    eprintln!("Installing wasm-bindgen-cli {version} below {} ...", root.display());
    let install = |further: &[&str]| {
        let mut command = Command::new(cargo());
        command.args(["install", "wasm-bindgen-cli", "--version", version, "--force", "--root"]).arg(&root);
        command.arg("--target-dir").arg(root.join("build")).args(further).status().context("cargo did not start")
    };
    // A registry mirror can lack an exact version that the tool was released with; a compatible one does as well.
    if !install(&["--locked"])?.success() && !install(&[])?.success() {
        bail!(
            "`cargo install wasm-bindgen-cli --version {version}` failed: its messages are above; put a {RUNNER} of that \
             version on PATH to do without"
        );
    }
    // Half a gigabyte of objects that nothing uses again.
    let _ = fs::remove_dir_all(root.join("build"));
    Ok(runner)
}

fn runner_version(runner: &Path) -> Option<String> {
    let output = Command::new(runner).arg("--version").output().ok()?;
    String::from_utf8_lossy(&output.stdout).split_whitespace().nth(1).map(str::to_owned)
}

/// The version of a package in a `Cargo.lock`.
fn locked_version<'a>(lock_file: &'a str, package: &str) -> Option<&'a str> {
    let mut lines = lock_file.lines();
    lines.find(|l| l.strip_prefix("name = ").is_some_and(|n| n.trim_matches('"') == package))?;
    lines.next()?.strip_prefix("version = ").map(|v| v.trim_matches('"'))
}

/// The first executable file of that name on PATH.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Holds a lock file until dropped, so that concurrent set-ups wait for each other.
pub(crate) fn lock(path: &Path) -> Result<File> {
    let file = File::create(path).with_context(|| format!("{} cannot be written", path.display()))?;
    file.lock().with_context(|| format!("{} cannot be locked", path.display()))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_file_names_a_version() {
        let lock =
            "[[package]]\nname = \"a-b\"\nversion = \"1.0.0\"\n\n[[package]]\nname = \"a\"\nversion = \"2.1.0\"\n";
        for (package, version) in [("a", Some("2.1.0")), ("a-b", Some("1.0.0")), ("b", None)] {
            assert_eq!(locked_version(lock, package), version, "{package}");
        }
        assert!(locked_version(LOCK_FILE, "wasm-bindgen").is_some());
    }

    #[test]
    fn only_a_wasm_artifact_is_the_module() {
        let artifact = |file: &str| format!(r#"{{"reason":"compiler-artifact","filenames":["{file}"]}}"#);
        let rows = [
            (artifact("/t/routebalance.wasm"), Some(PathBuf::from("/t/routebalance.wasm"))),
            (artifact("/t/libserde.rlib"), None),
            (r#"{"reason":"build-finished","success":true}"#.to_owned(), None),
            ("warning: not JSON".to_owned(), None),
        ];
        for (line, module) in rows {
            assert_eq!(wasm_artifact(&line), module, "{line}");
        }
    }

    #[test]
    fn a_target_that_rust_does_not_know_is_missing() {
        assert!(!has_target("wasm99-nowhere").unwrap());
    }
}
