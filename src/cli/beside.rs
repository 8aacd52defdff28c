//! Files that a configuration names. Envoy looks for them from its working directory; where they are not, they may be beside the
//! configuration.

use std::path::Path;

use routebalance_core::config::Config;
use routebalance_core::fleet::Pool;
use serde_json::Value;

/// The path as written where that exists, or else the one beside the file that names it; `None` if there is neither.
pub fn find(path: &str, named_by: &Path) -> Option<String> {
    if Path::new(path).exists() {
        return Some(path.to_owned());
    }
    let beside = named_by.parent()?.join(path);
    let beside = beside.to_str()?;
    Path::new(beside).exists().then(|| beside.to_owned())
}

/// The same for a file that Envoy makes: its directory is enough.
fn find_place(path: &str, named_by: &Path) -> Option<String> {
    let directory = |path: &str| match Path::new(path).parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_str().map(str::to_owned),
        _ => Some(".".to_owned()),
    };
    find(path, named_by).or_else(|| {
        let written = directory(path)?;
        let found = find(&written, named_by)?;
        if found == written { Some(path.to_owned()) } else { named_by.parent()?.join(path).to_str().map(str::to_owned) }
    })
}

/// Where a field's file is, and what to do where it is nowhere.
struct Named<'a> {
    field: &'static str,
    written: &'a str,
    found: Option<String>,
    advice: &'static str,
}

fn named<'a>(config: &'a Config, file: &Path) -> Vec<Named<'a>> {
    let envoy = &config.envoy;
    let mut all = vec![
        Named {
            field: "module",
            written: &envoy.module,
            found: find(&envoy.module, file),
            advice: "build it with `cargo filter`, or name where Envoy will have it",
        },
        Named {
            field: "access_log",
            written: &envoy.access_log,
            found: find_place(&envoy.access_log, file),
            advice: "make its directory before Envoy starts",
        },
    ];
    if config.fleet.pools.iter().any(Pool::reads_endpoints) {
        all.push(Named {
            field: "endpoints_dir",
            written: &envoy.endpoints_dir,
            found: find(&envoy.endpoints_dir, file),
            advice: "`render` makes it",
        });
    }
    all
}

/// Names files that are only beside the configuration by the way there.
pub fn resolve(json: &mut Value, config: &Config, file: &Path) {
    for Named { field, written, found, .. } in named(config, file) {
        if let Some(found) = found.filter(|found| found != written) {
            json["envoy"][field] = found.into();
        }
    }
}

/// A sentence for each that is nowhere.
pub fn missing(config: &Config, file: &Path) -> Vec<String> {
    let nowhere = named(config, file).into_iter().filter(|named| named.found.is_none());
    let sentence = |Named { field, written, advice, .. }: Named<'_>| {
        let place = if Path::new(written).is_absolute() {
            "does not exist".to_owned()
        } else {
            format!("is neither in the working directory nor beside {}", file.display())
        };
        format!("envoy.{field}: {written} {place}: {advice}")
    };
    nowhere.map(sentence).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn files_are_looked_for_as_written_and_then_beside_the_configuration() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("my.json");
        fs::create_dir(directory.path().join("logs")).unwrap();
        fs::write(directory.path().join("m.wasm"), "").unwrap();
        let absolute = directory.path().join("m.wasm").to_str().unwrap().to_owned();
        let beside = |name: &str| Some(directory.path().join(name).to_str().unwrap().to_owned());
        let here = Some("Cargo.toml".to_owned());
        for (path, found, place) in [
            ("Cargo.toml", here.clone(), here),
            ("m.wasm", beside("m.wasm"), beside("m.wasm")),
            (&absolute, Some(absolute.clone()), Some(absolute.clone())),
            ("logs/access.log", None, beside("logs/access.log")),
            ("access.log", None, Some("access.log".to_owned())),
            ("nowhere/access.log", None, None),
            ("/nowhere/access.log", None, None),
        ] {
            assert_eq!(find(path, &file), found, "{path}");
            assert_eq!(find_place(path, &file), place, "{path}");
        }
    }

    #[test]
    fn what_is_nowhere_is_said_and_what_is_beside_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("my.json");
        let mut json: Value = serde_json::from_str(include_str!("../../envoy/routebalance.json")).unwrap();
        json["pools"][0]["instances"] = "discover".into();
        json["envoy"]["module"] = "m.wasm".into();
        json["envoy"]["access_log"] = "/nowhere/access.log".into();
        json["envoy"]["endpoints_dir"] = "some/endpoints".into();
        let config = Config::parse(json.to_string().as_bytes()).unwrap();
        let name = file.display();
        assert_eq!(
            missing(&config, &file),
            [
                format!(
                    "envoy.module: m.wasm is neither in the working directory nor beside {name}: build it with `cargo filter`, or name where Envoy will have it"
                ),
                "envoy.access_log: /nowhere/access.log does not exist: make its directory before Envoy starts"
                    .to_owned(),
                format!(
                    "envoy.endpoints_dir: some/endpoints is neither in the working directory nor beside {name}: `render` makes it"
                ),
            ]
        );
        let as_written = json.clone();
        resolve(&mut json, &config, &file);
        assert_eq!(json, as_written, "what is nowhere stays as it is written");
        fs::write(directory.path().join("m.wasm"), "").unwrap();
        resolve(&mut json, &config, &file);
        assert_eq!(json["envoy"]["module"], directory.path().join("m.wasm").to_str().unwrap());
        assert_eq!(missing(&config, &file).len(), 2);
    }
}
