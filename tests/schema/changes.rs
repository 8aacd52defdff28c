//! Changes of a configuration, drawn by lot.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

/// A configuration with one change, and what the change is.
pub(crate) fn changed(config: &Value, seed: u64) -> (Value, String) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut config = config.clone();
    let pointers = pointers(&config);
    let pointer = pick(&pointers, &mut rng);
    let other = config.pointer(pick(&pointers, &mut rng)).cloned().unwrap_or_default();
    let what = match rng.random_range(0..8) {
        0 => {
            remove(&mut config, pointer);
            format!("without {pointer}")
        }
        1 => {
            let name = pointer.rsplit('/').next().unwrap_or_default();
            let place = pick(&pointers, &mut rng);
            let value = config.pointer(pointer).cloned().unwrap_or_default();
            let fields = config.pointer_mut(place).and_then(Value::as_object_mut);
            fields.map(|fields| fields.insert(name.to_owned(), value));
            format!("{place} with {name} of {pointer}")
        }
        kind => {
            let node = config.pointer_mut(pointer).expect("a pointer of this configuration");
            *node = match kind {
                2 => other,
                3 | 4 => any(&mut rng),
                _ => near(node, &mut rng),
            };
            format!("{pointer} = {node}")
        }
    };
    (config, what)
}

/// The pointers of everything in a configuration.
fn pointers(config: &Value) -> Vec<String> {
    let (mut pointers, mut rest) = (Vec::new(), vec![(String::new(), config)]);
    while let Some((pointer, value)) = rest.pop() {
        match value {
            Value::Object(fields) => {
                rest.extend(fields.iter().map(|(name, field)| (format!("{pointer}/{name}"), field)))
            }
            Value::Array(items) => {
                rest.extend(items.iter().enumerate().map(|(i, item)| (format!("{pointer}/{i}"), item)));
            }
            _ => {}
        }
        pointers.push(pointer);
    }
    pointers
}

fn pick<'a>(pointers: &'a [String], rng: &mut StdRng) -> &'a str {
    pointers.choose(rng).expect("a configuration has a root")
}

fn remove(config: &mut Value, pointer: &str) {
    let Some((parent, step)) = pointer.rsplit_once('/') else { return };
    match config.pointer_mut(parent) {
        Some(Value::Object(fields)) => {
            fields.remove(step);
        }
        Some(Value::Array(items)) => {
            items.remove(step.parse().expect("the step of a list is a number"));
        }
        _ => {}
    }
}

/// A value that fits hardly anywhere.
fn any(rng: &mut StdRng) -> Value {
    let values = [
        json!(null),
        json!(true),
        json!(-1),
        json!(0),
        json!(-0.0),
        json!(0.5),
        json!(1),
        json!(1e3),
        json!(100_000.5),
        json!(1e18),
        json!(u64::MAX),
        json!(1e300),
        json!(""),
        json!(" "),
        json!("a"),
        json!("/"),
        json!("*"),
        json!("\u{85}"),
        json!("discover"),
        json!("off"),
        json!("Host"),
        json!("300.0.0.1:80"),
        json!("a:70000"),
        json!([]),
        json!([""]),
        json!({}),
        json!({"surprise": 1}),
    ];
    values.choose(rng).cloned().unwrap_or_default()
}

/// A value like this one.
fn near(value: &Value, rng: &mut StdRng) -> Value {
    match value {
        Value::Number(number) => {
            let number = number.as_f64().unwrap_or_default();
            let factor = [-1.0, 0.0, 1e-6, 0.1, 0.5, 2.0, 10.0, 1e3, 1e9].choose(rng).copied().unwrap_or_default();
            json!(number * factor)
        }
        Value::String(text) => json!(near_text(text, rng)),
        Value::Array(items) => {
            let mut items = items.clone();
            items.extend(items.choose(rng).cloned());
            json!(items)
        }
        Value::Object(fields) => {
            let mut fields = fields.clone();
            fields.insert("surprise".to_owned(), json!(1));
            json!(fields)
        }
        Value::Bool(flag) => json!(flag.to_string()),
        Value::Null => json!(0),
    }
}

fn near_text(text: &str, rng: &mut StdRng) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    let at = rng.random_range(0..=chars.len());
    match rng.random_range(0..6) {
        0 => chars.truncate(at),
        1 => chars = chars.repeat(30),
        2 => return text.to_uppercase(),
        _ => {
            const SIGNS: &[char] = &[
                ' ', '!', '"', '#', '$', '%', '&', '\'', '(', '*', '+', ',', '-', '.', '/', '0', '9', ':', ';', '<',
                '=', '>', '?', '@', 'A', 'Z', '[', '\\', ']', '^', '_', '`', 'a', 'z', '{', '|', '}', '~', '\0', '\n',
                '\u{7f}', '\u{85}', '\u{a0}', 'é', '日',
            ];
            chars.insert(at, SIGNS.choose(rng).copied().unwrap_or_default());
        }
    }
    chars.into_iter().collect()
}
