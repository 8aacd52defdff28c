//! What the schema and the parser say of a configuration, and where a configuration has which object of the schema.

use std::collections::BTreeMap;

use jsonschema::Validator;
use routebalance_cli::schema::SCHEMA;
use routebalance_core::config::Config;
use serde_json::Value;

/// What the parser refuses and no schema can: what depends on another place of the file, and numbers inside of a text. Each row is a part
/// of the parser's sentence.
pub(crate) const LOOSER: [&str; 18] = [
    // Names that refer to something, or that something else has.
    "no model is named",
    "no policy is named",
    "no pool is named",
    "no pool serves",
    "is also the name of a model",
    "is also the name of an adapter",
    "generates no text",
    // What must be unique in more than one list, or by a part.
    "\" appears twice",
    "appears twice with the model",
    "appears twice in the pool",
    // Sums.
    "must have a sum of 1",
    "the shares of",
    // Numbers that depend on another one.
    "must be above that of the level before",
    "must be above telemetry.fresh_ms",
    "must not be below health.base_ejection_ms",
    // Numbers inside of an address.
    "is not an ip:port address",
    "is neither ip:port nor name:port",
    // Written with a point or an exponent, a whole number is exact up to 2^53 alone.
    "000000000.0`, expected a whole number",
];

/// What is said of a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Both accept it.
    Accepted,
    /// The schema alone accepts it, for the reason in this row of [`LOOSER`].
    Looser(usize),
    /// The schema refuses it, as it should.
    Refused,
}

/// The schema and the parser, side by side.
pub(crate) struct Judge {
    /// The schema.
    pub(crate) schema: Value,
    validator: Validator,
}

impl Judge {
    pub(crate) fn new() -> Judge {
        let schema: Value = serde_json::from_str(SCHEMA).expect("the schema is JSON");
        jsonschema::meta::validate(&schema).expect("the schema is a schema");
        let validator = jsonschema::validator_for(&schema).expect("the schema refers to what it has");
        Judge { schema, validator }
    }

    /// What both say, or a sentence about where they differ.
    pub(crate) fn verdict(&self, config: &Value) -> Result<Verdict, String> {
        let parsed = parsed(config);
        let refusals = self.refusals(config);
        match (parsed, refusals.is_empty()) {
            (Ok(_), true) => Ok(Verdict::Accepted),
            (Ok(_), false) => Err(format!("the schema alone refuses it: {}", refusals.join("; "))),
            (Err(_), false) => Ok(Verdict::Refused),
            (Err(sentence), true) => match LOOSER.iter().position(|part| sentence.contains(part)) {
                Some(row) => Ok(Verdict::Looser(row)),
                None => Err(format!("the parser alone refuses it: {sentence}")),
            },
        }
    }

    /// What the schema has against a configuration.
    pub(crate) fn refusals(&self, config: &Value) -> Vec<String> {
        self.validator.iter_errors(config).map(|error| format!("{}: {error}", error.instance_path())).collect()
    }

    /// What stands behind `$ref`.
    fn resolved<'a>(&'a self, schema: &'a Value) -> (&'a str, &'a Value) {
        match schema["$ref"].as_str() {
            Some(reference) => {
                let name = reference.trim_start_matches("#/$defs/");
                (name, &self.schema["$defs"][name])
            }
            None => ("", schema),
        }
    }

    /// What the schema says of the members of a value, each with its step of a pointer.
    fn members<'a>(&'a self, schema: &'a Value, value: &'a Value) -> Vec<(String, &'a Value, &'a Value)> {
        let mut forms = vec![schema];
        forms.extend(schema["oneOf"].as_array().into_iter().flatten());
        let forms = forms.into_iter().map(|form| self.resolved(form).1);
        match value {
            Value::Object(fields) => {
                let properties = forms.filter_map(|form| form["properties"].as_object());
                let member = |(name, schema): (&'a String, &'a Value)| Some((name.clone(), schema, fields.get(name)?));
                properties.flatten().filter_map(member).collect()
            }
            Value::Array(items) => {
                let schemas: Vec<&Value> = forms.filter_map(|form| form.get("items")).collect();
                let member =
                    |schema: &'a Value| items.iter().enumerate().map(move |(i, item)| (i.to_string(), schema, item));
                schemas.into_iter().flat_map(member).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Every object of a configuration whose fields the schema has: its pointer, and the name of its definition; `` of the whole file.
    pub(crate) fn objects(&self, config: &Value) -> BTreeMap<String, String> {
        let mut objects = BTreeMap::new();
        let mut rest = vec![(String::new(), &self.schema, config)];
        while let Some((pointer, schema, value)) = rest.pop() {
            let branches = schema["oneOf"].as_array().into_iter().flatten();
            for (name, form) in std::iter::once(schema).chain(branches).map(|form| self.resolved(form)) {
                if value.is_object() && form["properties"].is_object() {
                    objects.insert(pointer.clone(), name.to_owned());
                }
            }
            let members = self.members(schema, value);
            rest.extend(
                members.into_iter().map(|(step, schema, member)| (format!("{pointer}/{step}"), schema, member)),
            );
        }
        objects
    }

    /// The definitions of objects with fields, by their names; `` is the whole file.
    pub(crate) fn definitions(&self) -> BTreeMap<&str, &Value> {
        let named = self.schema["$defs"].as_object().expect("definitions").iter();
        let named = named.filter(|(_, definition)| definition["properties"].is_object());
        named.map(|(name, definition)| (name.as_str(), definition)).chain([("", &self.schema)]).collect()
    }

    /// Whether a value of this schema may be null.
    pub(crate) fn is_nullable(&self, schema: &Value) -> bool {
        let (_, form) = self.resolved(schema);
        let kinds = schema.get("type").unwrap_or(&form["type"]);
        [kinds, &schema["enum"]]
            .into_iter()
            .filter_map(Value::as_array)
            .flatten()
            .any(|kind| kind.is_null() || kind == "null")
    }
}

/// What the parser makes of a configuration, whatever its text, or its sentence.
pub(crate) fn parsed(config: &Value) -> Result<Config, String> {
    let config = Config::parse(config.to_string().as_bytes()).map_err(|problem| problem.to_string())?;
    Ok(Config { identity: 0, ..config })
}

/// A pointer as the parser and the documents write it, without the numbers: `pools[].limits`.
pub(crate) fn path(pointer: &str) -> String {
    let mut path = String::new();
    for step in pointer.split('/').skip(1) {
        if step.bytes().all(|b| b.is_ascii_digit()) {
            path.push_str("[]");
        } else {
            path = if path.is_empty() { step.to_owned() } else { format!("{path}.{step}") };
        }
    }
    path
}
