//! `routebalance render`: what is rendered, and the files that it is written to.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use routebalance_core::config::Config;
use serde_json::Value;

use super::beside;
use super::check::check;
use super::packages::{PackageArgs, Platform, package_from};
use super::render::listener::split;
use super::render::{endpoints, endpoints_file};

/// What to render, and where to.
#[derive(Args, Clone, Debug)]
pub struct RenderArgs {
    /// The configuration
    #[arg(default_value = "envoy/routebalance.json")]
    pub file: PathBuf,
    /// Where to write [default: envoy.yaml beside FILE]
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Write the listener into a file of its own, which Envoy reads again without a restart
    #[arg(long, value_name = "FILE")]
    pub listener: Option<PathBuf>,
    /// Listen on this ip:port instead of the configured one
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
    /// Write nothing; fail if the output differs from what would be written
    #[arg(long)]
    pub check: bool,
    /// Where it is to run: what to apply there is written to standard output, unless --output says where
    #[arg(long = "for", value_enum, default_value = "envoy", value_name = "PLATFORM")]
    pub platform: Platform,
    /// What packages need to know
    #[command(flatten, next_help_heading = "Options of packages")]
    pub package: PackageArgs,
}

/// Renders, and says in lines what was written.
///
/// # Errors
/// The configuration is refused, a file cannot be written, or it differs from what would be.
pub fn run(args: &RenderArgs) -> Result<Vec<String>> {
    let is_file = args.platform == Platform::Envoy;
    ensure!(
        is_file || args.listener.is_none(),
        "--listener is for Envoy by itself: other platforms send listeners their own way"
    );
    let checked = check(&args.file)?;
    let mut config: Value = serde_json::from_slice(&fs::read(&args.file)?)?;
    if let Some(listen) = args.listen {
        config["envoy"]["listen"] = listen.to_string().into();
    }
    if is_file {
        beside::resolve(&mut config, &checked, &args.file);
    }
    let name = args.file.file_name().unwrap_or_default().to_string_lossy();
    let yaml = package_from(&config, &name, args.platform, &args.package)?;
    let Some(output) = args.output.clone().or_else(|| is_file.then(|| args.file.with_file_name("envoy.yaml"))) else {
        ensure!(!args.check, "what is written to standard output cannot be compared: say --output FILE");
        print!("{yaml}");
        return Ok(Vec::new());
    };
    let (main, listener) = match &args.listener {
        None => (yaml, None),
        Some(path) => {
            let named = path.to_str().with_context(|| format!("{} is no text in UTF-8", path.display()))?;
            let parts = split(&yaml, named)?;
            (parts.main, Some((path.as_path(), parts.listener)))
        }
    };
    refuse_overwriting(&args.file, &output, args.listener.as_deref())?;
    if args.check {
        compare(&args.file, &output, &main)?;
        return listener.map_or(Ok(()), |(path, text)| compare(&args.file, path, &text)).map(|()| Vec::new());
    }
    // The clusters first: the listener's requests go to them.
    let was = Was::replaced(&output, &main, false)?;
    let mut lines = vec![was.line(&output)];
    if let Some((path, text)) = listener {
        let listener_was = Was::replaced(path, &text, true)?;
        lines.push(listener_was.line(path));
        lines.extend(reload(was, listener_was));
    }
    if is_file {
        lines.extend(missing_endpoints(&Config::parse(config.to_string().as_bytes())?));
    }
    Ok(lines)
}

/// The configuration is not to be lost, and two files are two.
fn refuse_overwriting(file: &Path, output: &Path, listener: Option<&Path>) -> Result<()> {
    let is_same = |left: &Path, right: &Path| {
        left == right || matches!((left.canonicalize(), right.canonicalize()), (Ok(left), Ok(right)) if left == right)
    };
    for path in [Some(output), listener].into_iter().flatten() {
        ensure!(!is_same(path, file), "{} is the configuration itself: say another file", path.display());
    }
    if let Some(listener) = listener {
        ensure!(!is_same(listener, output), "--listener and --output are one file, {}: say two", output.display());
    }
    Ok(())
}

fn compare(file: &Path, output: &Path, text: &str) -> Result<()> {
    let written = fs::read_to_string(output).with_context(|| format!("{} cannot be read", output.display()))?;
    if written != text {
        bail!("{} is not what {} renders to: run `routebalance render`", output.display(), file.display());
    }
    Ok(())
}

/// What a file was before it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Was {
    Missing,
    Other,
    Same,
}

impl Was {
    /// Writes a file that is not the same yet; by a rename where somebody watches it.
    fn replaced(path: &Path, text: &str, is_watched: bool) -> Result<Was> {
        let was = match fs::read(path) {
            Ok(old) if old == text.as_bytes() => return Ok(Was::Same),
            Ok(_) => Was::Other,
            Err(_) => Was::Missing,
        };
        let written = if is_watched { rename_to(path, text) } else { fs::write(path, text) };
        written.with_context(|| format!("{} cannot be written", path.display()))?;
        Ok(was)
    }

    fn line(self, path: &Path) -> String {
        match self {
            Was::Missing => format!("wrote {}", path.display()),
            Was::Other => format!("wrote {} anew", path.display()),
            Was::Same => format!("{} is the same as before", path.display()),
        }
    }
}

/// Nobody sees half of it, and Envoy looks at a file when another is renamed to it. Who may read the old one may read the new one.
fn rename_to(path: &Path, text: &str) -> std::io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let renamed = fs::write(&new, text).and_then(|()| {
        if let Ok(old) = fs::metadata(path) {
            fs::set_permissions(&new, old.permissions())?;
        }
        fs::rename(&new, path)
    });
    if renamed.is_err() {
        // What could not be renamed is of no use.
        let _ = fs::remove_file(&new);
    }
    renamed
}

/// What a running Envoy makes of it.
fn reload(main: Was, listener: Was) -> Option<String> {
    match (main, listener) {
        (Was::Same, Was::Other | Was::Missing) => {
            Some("only the listener has changed: a running Envoy takes it by itself, without a restart".to_owned())
        }
        (Was::Other, _) => Some("more than the listener has changed: restart Envoy".to_owned()),
        _ => None,
    }
}

/// Envoy does not start before the file of every discovered pool exists. Files that do are not touched.
fn missing_endpoints(config: &Config) -> Vec<String> {
    let discovered = config.fleet.pools.iter().filter(|pool| pool.reads_endpoints());
    let lines = discovered.filter_map(|pool| {
        let file = endpoints_file(&config.envoy.endpoints_dir, &pool.cluster);
        match create(Path::new(&file), &endpoints(&pool.cluster, &[])) {
            Ok(()) => Some(format!(
                "wrote {file} without endpoints: whoever knows those of pool {} replaces it by a rename",
                pool.name
            )),
            Err(problem) if problem.kind() == ErrorKind::AlreadyExists => None,
            // It may be another machine's.
            Err(problem) => {
                Some(format!("{file} cannot be written ({problem}), and Envoy does not start before it exists"))
            }
        }
    });
    lines.collect()
}

fn create(file: &Path, text: &str) -> std::io::Result<()> {
    if let Some(directory) = file.parent() {
        fs::create_dir_all(directory)?;
    }
    OpenOptions::new().write(true).create_new(true).open(file)?.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;

    #[derive(Parser)]
    struct RenderWords {
        #[command(flatten)]
        render: RenderArgs,
    }

    /// A directory with the example in it, changed.
    struct Workplace(tempfile::TempDir);

    impl Workplace {
        fn new(changes: &[(&str, Value)]) -> Workplace {
            let place = Workplace(tempfile::tempdir().unwrap());
            place.change(changes);
            place
        }

        fn change(&self, changes: &[(&str, Value)]) {
            let mut json: Value = serde_json::from_str(include_str!("../../envoy/routebalance.json")).unwrap();
            json["envoy"]["endpoints_dir"] = self.path("endpoints").into();
            for (pointer, value) in changes {
                let (parent, key) = pointer.rsplit_once('/').unwrap();
                let parent = json.pointer_mut(parent).unwrap();
                match key.parse::<usize>() {
                    Ok(index) => parent[index] = value.clone(),
                    Err(_) => parent[key] = value.clone(),
                }
            }
            fs::write(self.path("my.json"), json.to_string()).unwrap();
        }

        fn path(&self, name: &str) -> String {
            self.0.path().join(name).to_str().unwrap().to_owned()
        }

        fn run(&self, more: &[&str]) -> Result<Vec<String>> {
            let named: Vec<String> = more
                .iter()
                .map(|word| word.strip_prefix('@').map_or((*word).to_owned(), |name| self.path(name)))
                .collect();
            let words = ["render".to_owned(), self.path("my.json")].into_iter().chain(named);
            let lines = run(&RenderWords::try_parse_from(words).unwrap().render)?;
            Ok(lines.into_iter().map(|line| line.replace(&self.path(""), "")).collect())
        }

        fn read(&self, name: &str) -> String {
            fs::read_to_string(self.path(name)).unwrap()
        }
    }

    const WEIGHTS: &str = "/policies/0/weights";

    #[test]
    fn it_says_what_was_written_and_who_must_know() {
        let place = Workplace::new(&[]);
        let both = ["--listener", "@listener.yaml"];
        assert_eq!(place.run(&[]).unwrap(), ["wrote envoy.yaml"]);
        assert!(place.read("envoy.yaml").starts_with("# Rendered from my.json by "));
        assert_eq!(place.run(&[]).unwrap(), ["envoy.yaml is the same as before"]);
        let restart = "more than the listener has changed: restart Envoy";
        assert_eq!(place.run(&both).unwrap(), ["wrote envoy.yaml anew", "wrote listener.yaml", restart]);
        assert!(place.run(&[&both[..], &["--check"]].concat()).unwrap().is_empty());
        place.change(&[(WEIGHTS, json!({"cost": 0.5, "latency": 0.25, "quality": 0.25}))]);
        let stale = place.run(&[&both[..], &["--check"]].concat()).unwrap_err().to_string();
        assert!(stale.contains("listener.yaml is not what"), "{stale}");
        let reload = "only the listener has changed: a running Envoy takes it by itself, without a restart";
        assert_eq!(place.run(&both).unwrap(), ["envoy.yaml is the same as before", "wrote listener.yaml anew", reload]);
        assert!(!Path::new(&place.path("listener.yaml.new")).exists());
        place.change(&[("/envoy/admin", json!("127.0.0.1:9902"))]);
        assert_eq!(place.run(&both).unwrap(), ["wrote envoy.yaml anew", "wrote listener.yaml anew", restart]);
    }

    #[test]
    fn a_discovered_pool_gets_a_file_once() {
        let place = Workplace::new(&[("/pools/1/instances", json!("discover"))]);
        let first = "wrote endpoints/pool-qwen2.5-7b.yaml without endpoints: whoever knows those of pool qwen2.5-7b replaces it by a \
                     rename";
        assert!(place.run(&["--check"]).is_err() && !Path::new(&place.path("endpoints")).exists());
        assert_eq!(place.run(&[]).unwrap(), ["wrote envoy.yaml", first]);
        assert_eq!(place.read("endpoints/pool-qwen2.5-7b.yaml"), endpoints("pool-qwen2.5-7b", &[]));
        fs::write(place.path("endpoints/pool-qwen2.5-7b.yaml"), "theirs").unwrap();
        assert_eq!(place.run(&[]).unwrap(), ["envoy.yaml is the same as before"]);
        assert_eq!(place.read("endpoints/pool-qwen2.5-7b.yaml"), "theirs");
        let package = ["--for", "istio-gateway", "--image", "a/b:1", "--output", "@objects.yaml"];
        fs::remove_dir_all(place.path("endpoints")).unwrap();
        assert_eq!(place.run(&package).unwrap(), ["wrote objects.yaml"]);
        assert!(!Path::new(&place.path("endpoints")).exists(), "a mesh knows its endpoints");
        place.change(&[("/pools/1/instances", json!("discover")), ("/envoy/endpoints_dir", json!("/proc/nowhere"))]);
        let lines = place.run(&[]).unwrap();
        assert!(lines[1].contains("/proc/nowhere/pool-qwen2.5-7b.yaml cannot be written"), "{lines:?}");
    }

    #[test]
    fn what_would_overwrite_or_cannot_be_is_refused() {
        let place = Workplace::new(&[]);
        fs::create_dir(place.path("folder")).unwrap();
        for (words, part) in [
            (&["--check", "--listener", "@l"][..], "envoy.yaml cannot be read"),
            (&["--output", "@my.json"], "is the configuration itself"),
            (&["--listener", "@my.json"], "is the configuration itself"),
            (&["--listener", "@envoy.yaml"], "--listener and --output are one file"),
            (&["--listener", "@nowhere/listener.yaml"], "listener.yaml cannot be written"),
            (&["--listener", "@folder"], "folder cannot be written"),
            (&["--listener", "@l", "--for", "istio-gateway", "--image", "a/b:1"], "--listener is for Envoy by itself"),
            (&["--check", "--for", "istio-gateway", "--image", "a/b:1"], "say --output FILE"),
        ] {
            let problem = format!("{:#}", place.run(words).unwrap_err());
            assert!(problem.contains(part) && !problem.contains('\n'), "{words:?}: {problem}");
        }
        assert!(!Path::new(&place.path("folder.new")).exists());
    }
}
