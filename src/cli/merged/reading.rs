//! Files of Envoy's, and the listeners, clusters, routes and filters in them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::fields::{deep, field, held, items, text, typed, walk};
use super::{Finding, managers};
use crate::beside;

/// What stands in the files.
#[derive(Debug, Default)]
pub(super) struct Resources {
    pub(super) listeners: Vec<Value>,
    pub(super) clusters: Vec<Value>,
    /// Route configurations that connection managers name.
    pub(super) routes: Vec<Value>,
    /// Filters that connection managers name.
    pub(super) extensions: Vec<Value>,
    /// Whether a file says which clusters there are from the start.
    is_whole: bool,
    /// Whether some listeners come from a server.
    pub(super) has_listeners_elsewhere: bool,
    /// Whether some clusters come from a server.
    has_clusters_elsewhere: bool,
    pub(super) findings: Vec<Finding>,
    /// Files that were read: one may name itself.
    seen: BTreeSet<PathBuf>,
}

impl Resources {
    /// Reads files, and those that they name.
    ///
    /// # Errors
    /// A file cannot be read, or is none of Envoy's.
    pub(super) fn read(files: &[PathBuf]) -> Result<Resources> {
        let mut all = Resources::default();
        for file in files {
            all.read_file(file)?;
        }
        // Routes and filters that stand in files of their own.
        let mut named: Vec<(&str, Value)> = Vec::new();
        for manager in managers::all(&all, None) {
            named.extend(deep(manager.config, &["rds", "config_source"]).map(|source| ("rds", source.clone())));
            let filters = items(manager.config, "http_filters").iter();
            let sources = filters.filter_map(|filter| deep(filter, &["config_discovery", "config_source"]));
            named.extend(sources.map(|source| ("config_discovery", source.clone())));
        }
        let base = files.first().map_or(Path::new(""), PathBuf::as_path);
        for (field_name, source) in named {
            all.follow(&source, base, field_name);
        }
        Ok(all)
    }

    /// Whether a cluster that is in no file is nowhere.
    pub(super) fn has_all_clusters(&self) -> bool {
        self.is_whole && !self.has_clusters_elsewhere
    }

    fn read_file(&mut self, file: &Path) -> Result<()> {
        if !self.seen.insert(file.canonicalize().unwrap_or_else(|_| file.to_owned())) {
            return Ok(());
        }
        let bytes = std::fs::read(file).with_context(|| format!("{} cannot be read", file.display()))?;
        let value = self.parse(&bytes, &file.display().to_string())?;
        self.collect(value, file)
    }

    fn parse(&mut self, bytes: &[u8], name: &str) -> Result<Value> {
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let text = std::str::from_utf8(bytes).with_context(|| format!("{name} is no text in UTF-8"))?;
        ensure!(!text.trim().is_empty(), "{name} is empty");
        if let Ok(value) = serde_json::from_str(text) {
            return Ok(value);
        }
        let read = |merge_keys| {
            let options = serde_saphyr::options! {
                budget: serde_saphyr::budget! {
                    max_depth: 256, max_events: 50_000_000, max_nodes: 20_000_000, enforce_alias_anchor_ratio: false,
                },
                merge_keys: merge_keys,
                with_snippet: false,
            };
            serde_saphyr::from_str_with_options::<Value>(text, options)
        };
        let value = read(serde_saphyr::MergeKeyPolicy::Merge)
            .map_err(|problem| anyhow::anyhow!("{name} is neither JSON nor YAML: {problem}"))?;
        let ordinary = read(serde_saphyr::MergeKeyPolicy::AsOrdinary);
        if ordinary.is_ok_and(|value| walk(&value).any(|value| value.get("<<").is_some())) {
            self.findings.push(Finding::error(format!(
                "{name} has the merge key `<<`, which Envoy refuses: write the fields out"
            )));
        }
        Ok(value)
    }

    fn collect(&mut self, value: Value, file: &Path) -> Result<()> {
        const BOOTSTRAP: [&str; 7] = [
            "static_resources",
            "dynamic_resources",
            "admin",
            "node",
            "overload_manager",
            "layered_runtime",
            "stats_config",
        ];
        let name = file.display();
        ensure!(value.is_object(), "{name} is no configuration of Envoy: it holds no object");
        if let Some(Value::Array(dumps)) = field(&value, "configs") {
            self.dump(dumps);
        } else if let Some(Value::Array(resources)) = field(&value, "resources") {
            resources.iter().for_each(|resource| self.resource(resource));
        } else if BOOTSTRAP.iter().any(|part| field(&value, part).is_some()) {
            self.bootstrap(&value, file);
        } else if typed(&value).is_some() {
            self.resource(&value);
        } else {
            bail!("{name} is neither a bootstrap of Envoy, nor a file of its resources, nor a config_dump");
        }
        Ok(())
    }

    fn bootstrap(&mut self, bootstrap: &Value, file: &Path) {
        self.is_whole = true;
        if let Some(fixed) = field(bootstrap, "static_resources") {
            self.listeners.extend_from_slice(items(fixed, "listeners"));
            self.clusters.extend_from_slice(items(fixed, "clusters"));
        }
        if let Some(source) = deep(bootstrap, &["dynamic_resources", "lds_config"])
            && !self.follow(source, file, "lds_config")
        {
            self.has_listeners_elsewhere = true;
        }
        if let Some(source) = deep(bootstrap, &["dynamic_resources", "cds_config"])
            && !self.follow(source, file, "cds_config")
        {
            self.has_clusters_elsewhere = true;
        }
    }

    /// Reads the file that a source of configuration names, and says whether there was one.
    fn follow(&mut self, source: &Value, from: &Path, field_name: &str) -> bool {
        let path = deep(source, &["path_config_source", "path"]).or_else(|| field(source, "path"));
        let Some(path) = path.and_then(Value::as_str) else { return false };
        let path = beside::find(path, from).unwrap_or_else(|| path.to_owned());
        let read = self.read_file(Path::new(&path));
        if let Err(problem) = &read {
            self.findings.push(Finding::note(format!("{field_name} names a file that was not checked: {problem:#}")));
        }
        read.is_ok()
    }

    /// A resource by itself, as files and servers send them.
    fn resource(&mut self, resource: &Value) {
        let Some((kind, value)) = typed(resource) else { return };
        let list = match kind.rsplit('.').next() {
            Some("Listener") => &mut self.listeners,
            Some("Cluster") => &mut self.clusters,
            Some("RouteConfiguration") => &mut self.routes,
            Some("TypedExtensionConfig") => &mut self.extensions,
            Some("Resource") => {
                if let Some(inner) = field(value, "resource") {
                    self.resource(inner);
                }
                return;
            }
            _ => return,
        };
        list.push(value.clone());
    }

    /// What `/config_dump` says. The bootstrap in it repeats what the others have.
    fn dump(&mut self, dumps: &[Value]) {
        let kind = |dump: &Value| typed(dump).map(|(kind, _)| kind.rsplit('.').next().unwrap_or(kind).to_owned());
        let has = |name: &str| dumps.iter().any(|dump| kind(dump).as_deref() == Some(name));
        let is_repeated = has("ListenersConfigDump") || has("ClustersConfigDump");
        self.is_whole |= has("ClustersConfigDump");
        for dump in dumps {
            match field(dump, "bootstrap") {
                Some(_) if is_repeated => {}
                Some(bootstrap) => self.bootstrap(bootstrap, Path::new("")),
                None => self.dumped(dump),
            }
        }
    }

    fn dumped(&mut self, dump: &Value) {
        const LISTS: [&str; 8] = [
            "static_listeners",
            "dynamic_listeners",
            "static_clusters",
            "dynamic_active_clusters",
            "dynamic_warming_clusters",
            "static_route_configs",
            "dynamic_route_configs",
            "ecds_filters",
        ];
        for resource in
            ["listener", "cluster", "route_config", "ecds_filter"].iter().filter_map(|name| field(dump, name))
        {
            self.resource(resource);
        }
        for state in LISTS.iter().flat_map(|list| items(dump, list)) {
            self.dumped(state);
        }
        if let Some(state) = field(dump, "active_state").or_else(|| field(dump, "warming_state")) {
            self.dumped(state);
        }
    }

    /// The filter of this name that comes by itself: what it is configured with.
    pub(super) fn extension(&self, name: &str) -> Option<&Value> {
        let found = self.extensions.iter().find(|extension| text(extension, "name") == Some(name))?;
        field(found, "typed_config")
    }

    /// What a filter is configured with, wherever that stands, without what only decides whether it runs. `None` where it comes from
    /// elsewhere.
    pub(super) fn filter_config<'a>(&'a self, filter: &'a Value) -> Option<&'a Value> {
        let config = field(filter, "typed_config").or_else(|| {
            field(filter, "config_discovery")?;
            self.extension(text(filter, "name")?)
        })?;
        match held(config, "matching.v3.ExtensionWithMatcher") {
            Some(matched) => deep(matched, &["extension_config", "typed_config"]),
            None => Some(config),
        }
    }
}
