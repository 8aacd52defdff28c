//! One Envoy process: started, watched until it is ready, asked for its statistics, and never left behind.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::ports::ensure_free;

const READY_POLL: Duration = Duration::from_millis(25);
const LOG_LINES_SHOWN: usize = 12;

/// How to start Envoy.
#[derive(Clone, Debug)]
pub struct EnvoyOptions {
    /// The executable.
    pub binary: PathBuf,
    /// The rendered configuration (YAML).
    pub config: String,
    /// Where the configuration's listener listens.
    pub listen: SocketAddr,
    /// Where the configuration's admin interface listens.
    pub admin: SocketAddr,
    /// Worker threads.
    pub workers: u32,
    /// Envoy's `--log-level`.
    pub log_level: String,
    /// How long it may take to be ready. Envoy compiles the module first, which takes seconds.
    pub ready_within: Duration,
}

/// A running Envoy; dropping it kills the process.
#[derive(Debug)]
pub struct Envoy {
    process: Process,
    listen: SocketAddr,
    admin: SocketAddr,
    log: PathBuf,
    ready_after: Duration,
    http: reqwest::Client,
}

impl Envoy {
    /// Starts Envoy with `envoy.yaml` and `envoy.log` in `run_dir`, and waits until it serves.
    ///
    /// # Errors
    /// A port in use, a configuration that Envoy or the module refuses, or no readiness in time: a sentence, with the end of
    /// Envoy's log where that says more.
    pub async fn start(options: &EnvoyOptions, run_dir: &Path) -> Result<Self> {
        ensure_free(options.listen, "Envoy's listener")?;
        ensure_free(options.admin, "Envoy's admin interface")?;
        let (config, log) = (run_dir.join("envoy.yaml"), run_dir.join("envoy.log"));
        fs::write(&config, &options.config).with_context(|| format!("{} cannot be written", config.display()))?;
        File::create(&log).with_context(|| format!("{} cannot be written", log.display()))?;
        let started = Instant::now();
        let process = Process::start(options, &config, &log)?;
        let http = reqwest::Client::builder().timeout(Duration::from_secs(5)).build()?;
        let mut envoy =
            Self { process, listen: options.listen, admin: options.admin, log, ready_after: Duration::ZERO, http };
        envoy.wait_until_ready(started, options.ready_within).await?;
        envoy.ready_after = started.elapsed();
        Ok(envoy)
    }

    async fn wait_until_ready(&mut self, started: Instant, within: Duration) -> Result<()> {
        loop {
            if let Some(status) = self.process.exited()? {
                return Err(start_failure(&self.log_text(), &format!("Envoy ended at its start ({status})")));
            }
            if self.admin_get("/ready").await.is_ok_and(|body| body.trim() == "LIVE") {
                return Ok(());
            }
            if started.elapsed() > within {
                return Err(start_failure(&self.log_text(), &format!("Envoy was not ready within {within:?}")));
            }
            tokio::time::sleep(READY_POLL).await;
        }
    }

    /// Ends the process at once (SIGKILL).
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Where requests go.
    pub fn address(&self) -> SocketAddr {
        self.listen
    }

    /// Where the admin interface listens.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    /// The time from the start of the process until it was ready.
    pub fn ready_after(&self) -> Duration {
        self.ready_after
    }

    /// Bytes of memory that the process holds (resident set), if the system tells.
    pub fn resident_bytes(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.envoy.id())).ok()?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
        line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
    }

    /// Its process.
    pub fn process(&self) -> u32 {
        self.process.envoy.id()
    }

    /// The time that processors have spent on it, in user mode and in the system, if the system tells.
    pub fn cpu_time(&self) -> Option<Duration> {
        cpu_time_of(self.process.envoy.id())
    }

    /// Changes how much one of Envoy's components logs.
    ///
    /// # Errors
    /// The admin interface does not answer, or does not know the component.
    pub async fn log_level(&self, component: &str, level: &str) -> Result<()> {
        let url = format!("http://{}/logging?{component}={level}", self.admin);
        self.http.post(url).send().await?.error_for_status()?;
        Ok(())
    }

    /// The body of a page of the admin interface.
    pub async fn admin_get(&self, path: &str) -> Result<String> {
        let response = self.http.get(format!("http://{}{path}", self.admin)).send().await?.error_for_status()?;
        Ok(response.text().await?)
    }

    /// Envoy's counters and gauges whose names start with `prefix`.
    pub async fn stats(&self, prefix: &str) -> Result<BTreeMap<String, u64>> {
        Ok(parse_stats(&self.admin_get("/stats").await.context("Envoy's admin interface does not answer")?, prefix))
    }

    /// What Envoy has logged so far.
    pub fn log_text(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }
}

/// Envoy's process and the watcher that kills it if this process dies without running destructors (SIGKILL, a test's
/// time-out).
#[derive(Debug)]
struct Process {
    envoy: Child,
    watcher: Option<Child>,
}

impl Process {
    fn start(options: &EnvoyOptions, config: &Path, log: &Path) -> Result<Self> {
        let log = OpenOptions::new().append(true).open(log)?;
        let envoy = Command::new(&options.binary)
            .arg("-c")
            .arg(config)
            .args(["--concurrency", &options.workers.to_string(), "--log-level", &options.log_level])
            // Hot restart shares memory between all Envoys of a machine.
            .arg("--disable-hot-restart")
            // A group of its own: Ctrl-C reaches us, and we end Envoy.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("Envoy ({}) did not start", options.binary.display()))?;
        // Its standard input is a pipe that the kernel closes when this process ends, however it ends.
        let watcher = Command::new("sh")
            .args(["-c", r#"read -r _; kill -9 "$0""#, &envoy.id().to_string()])
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok();
        Ok(Self { envoy, watcher })
    }

    /// How it ended, if it did. The watcher goes first: after this the process number may belong to someone else.
    fn exited(&mut self) -> Result<Option<ExitStatus>> {
        let status = self.envoy.try_wait().context("Envoy's process cannot be watched")?;
        if status.is_some() {
            self.end_watcher();
        }
        Ok(status)
    }

    fn end_watcher(&mut self) {
        if let Some(mut watcher) = self.watcher.take() {
            let _ = watcher.kill();
            let _ = watcher.wait();
        }
    }
}

impl Process {
    fn kill(&mut self) {
        self.end_watcher();
        let _ = self.envoy.kill();
        let _ = self.envoy.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// One sentence if the log holds one: what the module or Envoy refused. Else the end of the log.
fn start_failure(log: &str, what: &str) -> anyhow::Error {
    if let Some(sentence) = refusal(log) {
        return anyhow!("{sentence}");
    }
    let is_chatter = |l: &&str| ["[info]", "[debug]", "[trace]"].iter().any(|level| l.contains(level));
    let lines: Vec<&str> = log.lines().filter(|l| !is_chatter(l)).collect();
    let shown = lines.get(lines.len().saturating_sub(LOG_LINES_SHOWN)..).unwrap_or_default();
    anyhow!("{what}; the end of its log:\n{}", shown.join("\n"))
}

/// The sentence with which the module refused its configuration (its last error before the end), or with which Envoy
/// refused a port.
fn refusal(log: &str) -> Option<String> {
    let bind = log.lines().find_map(|l| l.find("cannot bind").and_then(|at| l.get(at..)));
    if let Some(bind) = bind {
        return Some(format!("Envoy {bind}: stop what uses that port, or configure another one"));
    }
    let is_error = |l: &&str| ["[error]", "[critical]"].iter().any(|level| l.contains(level));
    let line = log.lines().rev().filter(is_error).find(|l| l.contains("wasm log"))?;
    let (_, logged) = line.split_once("wasm log")?;
    // "wasm log [plugin [root [vm]]]: text": names hold no colon.
    let (_, text) = logged.split_once(": ")?;
    let text = text.trim();
    Some(format!("the module refuses to start: {}", text.strip_prefix("routebalance: ").unwrap_or(text)))
}

/// Lines of `/stats`: `name: number`. Histograms, which are no single number, are left out.
fn parse_stats(page: &str, prefix: &str) -> BTreeMap<String, u64> {
    let numbers = page.lines().filter_map(|line| line.rsplit_once(": "));
    let wanted = numbers.filter(|(name, _)| name.starts_with(prefix));
    wanted.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))).collect()
}

/// The time that processors have spent on a process, in user mode and in the system, if the system tells.
pub(super) fn cpu_time_of(process: u32) -> Option<Duration> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).ok()?;
    let spent = tasks.flatten().filter_map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Some(Duration::from_nanos(spent.sum())).filter(|time| !time.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::free_ports;

    #[test]
    fn refusals_become_one_sentence() {
        let rows = [
            (
                "[2026-11-22 05:00:00.000][7][info][main] [source/server/server.cc:1] hello\n\
                 [2026-11-22 05:00:01.000][7][critical][wasm] [source/extensions/common/wasm/context.cc:1161] wasm log routebalance: routebalance: models[0].name: must not be empty\n\
                 [2026-11-22 05:00:01.000][7][error][wasm] [source/extensions/common/wasm/wasm.cc:109] Wasm VM failed Failed to configure Wasm plugin\n",
                Some("the module refuses to start: models[0].name: must not be empty"),
            ),
            (
                "[7][critical][main] error initializing config '/x/envoy.yaml': cannot bind '127.0.0.1:80': Permission denied",
                Some(
                    "Envoy cannot bind '127.0.0.1:80': Permission denied: stop what uses that port, or configure another one",
                ),
            ),
            ("[7][info][wasm] [context.cc:1] wasm log routebalance: ready", None),
            ("", None),
        ];
        for (log, sentence) in rows {
            assert_eq!(refusal(log).as_deref(), sentence, "{log}");
        }
    }

    #[test]
    fn stats_are_the_numbers_below_a_prefix() {
        let page = "a.b: 1\na.c: 0\nz: 5\na.h: P0(nan,1.0) P25(nan,2)\na.text: \"x\"\n";
        let expected = BTreeMap::from([("a.b".to_owned(), 1), ("a.c".to_owned(), 0)]);
        assert_eq!(parse_stats(page, "a."), expected);
    }

    fn stand_in(script: &str, dir: &Path) -> EnvoyOptions {
        let binary = dir.join("envoy");
        // Written by a process of its own: a test that forks meanwhile would hold our descriptor ("text file busy").
        let write = r#"printf '#!/bin/sh\n%s\n' "$1" > "$0" && chmod 755 "$0""#;
        assert!(Command::new("sh").args(["-c", write]).arg(&binary).arg(script).status().unwrap().success());
        let ports: Vec<SocketAddr> = free_ports(2).unwrap().iter().map(|p| p.address()).collect();
        EnvoyOptions {
            binary,
            config: "{}".to_owned(),
            listen: ports[0],
            admin: ports[1],
            workers: 1,
            log_level: "info".to_owned(),
            ready_within: Duration::from_millis(200),
        }
    }

    #[tokio::test]
    async fn a_start_that_fails_says_why() {
        let rows = [
            ("echo 'no such field' >&2; exit 1", ["ended at its start", "no such field"]),
            ("echo starting; exec sleep 30", ["not ready within 200ms", "starting"]),
        ];
        for (script, expected) in rows {
            let dir = tempfile::tempdir().unwrap();
            let problem = format!("{:#}", Envoy::start(&stand_in(script, dir.path()), dir.path()).await.unwrap_err());
            assert!(expected.iter().all(|e| problem.contains(e)), "{problem}");
        }
    }

    #[tokio::test]
    async fn a_port_in_use_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut options = stand_in("exit 0", dir.path());
        let held = free_ports(1).unwrap();
        options.admin = held[0].address();
        let problem = Envoy::start(&options, dir.path()).await.unwrap_err().to_string();
        assert!(
            problem.contains("admin interface") && problem.contains(&options.admin.port().to_string()),
            "{problem}"
        );
    }

    #[test]
    fn the_watcher_ends_envoy_when_its_owner_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let options = stand_in("exec sleep 30", dir.path());
        let log = dir.path().join("log");
        File::create(&log).unwrap();
        let mut process = Process::start(&options, &dir.path().join("envoy.yaml"), &log).unwrap();
        // What the kernel does when a process dies: close its end of the pipe.
        drop(process.watcher.as_mut().unwrap().stdin.take());
        let deadline = Instant::now() + Duration::from_secs(5);
        while process.exited().unwrap().is_none() {
            assert!(Instant::now() < deadline, "still running");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
