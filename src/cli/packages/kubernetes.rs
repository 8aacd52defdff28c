//! For Kubernetes without a mesh: the Helm chart, rendered.

use anyhow::{Context as _, Result, anyhow};
use gtmpl::{Context, Template, Value as Given};
use routebalance_core::config::Config;
use serde_json::Value;

use super::PackageArgs;

/// Templates of the chart, in the order in which objects are applied.
const TEMPLATES: [(&str, &str); 3] = [
    ("configmap.yaml", include_str!("../../../envoy/chart/templates/configmap.yaml")),
    ("deployment.yaml", include_str!("../../../envoy/chart/templates/deployment.yaml")),
    ("service.yaml", include_str!("../../../envoy/chart/templates/service.yaml")),
];
/// Its default values.
const VALUES: &str = include_str!("../../../envoy/chart/values.yaml");
/// The largest object that Kubernetes stores, with room for its metadata.
const OBJECT_BYTES_MAX: usize = 1_000_000;

pub(super) fn objects(envoy_yaml: &str, config: &Config, args: &PackageArgs) -> Result<String> {
    anyhow::ensure!(
        envoy_yaml.len() <= OBJECT_BYTES_MAX,
        "the rendered configuration has {} bytes, and a ConfigMap holds {OBJECT_BYTES_MAX}",
        envoy_yaml.len()
    );
    let mut values: Value = serde_saphyr::from_str(VALUES)?;
    values["envoyYaml"] = envoy_yaml.into();
    values["moduleImage"] = args.image()?.into();
    values["servicePort"] = args.port.unwrap_or(80).into();
    values["listenPort"] = config.envoy.listen.port().into();
    values["adminPort"] = config.envoy.admin.port().into();
    rendered(&values, &args.namespace)
}

/// The chart with these values.
fn rendered(values: &Value, namespace: &str) -> Result<String> {
    let release = Given::Object([("Namespace".to_owned(), namespace.into())].into());
    let all = Given::Object([("Values".to_owned(), given(values)), ("Release".to_owned(), release)].into());
    let documents = TEMPLATES.iter().map(|(name, text)| {
        let mut template = Template::default();
        template.add_func("toJson", to_json);
        let say = |problem: String| anyhow!("envoy/chart/templates/{name}: {problem}");
        template.parse(*text).map_err(|problem| say(problem.to_string()))?;
        template.render(&Context::from(all.clone())).map_err(|problem| say(problem.to_string()))
    });
    let head =
        "# Rendered by `routebalance render --for kubernetes`. Edit the configuration and render again.\n".to_owned();
    Ok(head + &documents.collect::<Result<Vec<String>>>().context("the chart cannot be rendered")?.join("---\n"))
}

/// The one function of Helm's own that the chart uses: text in JSON's quotes, which are YAML's as well.
fn to_json(given: &[Given]) -> Result<Given, gtmpl::FuncError> {
    match given {
        [Given::String(text)] => Ok(Value::from(text.as_str()).to_string().into()),
        _ => Err(gtmpl::FuncError::Generic("toJson takes one text".to_owned())),
    }
}

fn given(value: &Value) -> Given {
    match value {
        Value::Null => Given::Nil,
        Value::Bool(value) => (*value).into(),
        Value::Number(number) => {
            number.as_i64().map_or_else(|| number.as_f64().unwrap_or_default().into(), Given::from)
        }
        Value::String(text) => text.clone().into(),
        Value::Array(all) => Given::Array(all.iter().map(given).collect()),
        Value::Object(all) => Given::Object(all.iter().map(|(name, value)| (name.clone(), given(value))).collect()),
    }
}
