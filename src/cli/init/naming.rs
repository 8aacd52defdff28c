//! Names: what a configuration may hold, and how large a model is by its name.

use std::collections::BTreeSet;

/// Longest name of a configuration.
const NAME_MAX: usize = 128;

/// Parameters in billions, as a name has them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Size {
    /// All of them: what the model knows.
    pub(super) billions: f64,
    /// Those that a token meets: how fast the model is.
    pub(super) active_billions: f64,
}

impl Size {
    /// Reads `7B`, `0.5b`, `135M`, `8x7B` and `30B-A3B` out of a name.
    pub(super) fn from_name(name: &str) -> Option<Size> {
        let (mut billions, mut active) = (None, None);
        for word in name.split(|c: char| !(c.is_ascii_alphanumeric() || c == '.')) {
            if let Some(size) = word.strip_prefix(['a', 'A']).and_then(parameters) {
                active = active.or(Some(size));
            } else if let Some((experts, of_each)) = word.split_once(['x', 'X'])
                && let (Ok(experts), Some(each)) = (experts.parse::<u16>(), parameters(of_each))
            {
                billions = billions.or(Some(f64::from(experts) * each));
            } else {
                billions = billions.or_else(|| parameters(word));
            }
        }
        let billions = billions?;
        Some(Size { billions, active_billions: active.filter(|active| *active < billions).unwrap_or(billions) })
    }
}

/// Billions of `7B`, `135m` and `7B.gguf`; `4bit` is none.
fn parameters(word: &str) -> Option<f64> {
    let end = word.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
    let (number, unit) = word.split_at(end);
    let scale = match unit.as_bytes() {
        [b'b' | b'B'] | [b'b' | b'B', b'.', ..] => 1.0,
        [b'm' | b'M'] | [b'm' | b'M', b'.', ..] => 1e-3,
        _ => return None,
    };
    number.parse::<f64>().ok().map(|number| number * scale).filter(|billions| (0.001..=10_000.0).contains(billions))
}

/// Whether a configuration may hold the name: 1 to 128 visible ASCII characters without quotes.
pub(super) fn is_legal(name: &str) -> bool {
    (1..=NAME_MAX).contains(&name.len()) && name.chars().all(may_stand)
}

fn may_stand(c: char) -> bool {
    c.is_ascii_graphic() && c != '"' && c != '\\'
}

/// The last part of a path, such as `Qwen2.5-7B-Instruct` of `Qwen/Qwen2.5-7B-Instruct`.
pub(super) fn last_part(path: &str) -> &str {
    path.rsplit(['/', '\\']).find(|part| !part.is_empty()).unwrap_or_default()
}

/// A model's name by the name that its server has for it.
pub(super) fn model_name(id: &str) -> String {
    let name: String = last_part(id).chars().map(|c| if may_stand(c) { c } else { '-' }).take(NAME_MAX).collect();
    if name.is_empty() { "model".to_owned() } else { name }
}

/// A pool's name: that of its model in the letters that clusters and statistics have.
pub(super) fn pool_name(model: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') { c } else { '-' };
    // `pool-` stands before it in the cluster's name, and a number may stand behind it.
    model.chars().map(|c| plain(c.to_ascii_lowercase())).take(NAME_MAX - 16).collect()
}

/// The first of the names that is not taken, else the first one with a number; it is taken afterwards.
pub(super) fn free_name(names: &[String], taken: &mut BTreeSet<String>) -> String {
    let numbered = |name: &String, n: usize| {
        let kept: String = name.chars().take(NAME_MAX - 8).collect();
        format!("{kept}-{n}")
    };
    let free = names.iter().find(|name| !taken.contains(*name)).cloned().unwrap_or_else(|| {
        let first = names.first().cloned().unwrap_or_default();
        // Only as many are taken as there are.
        (2..=taken.len() + 2).map(|n| numbered(&first, n)).find(|name| !taken.contains(name)).unwrap_or(first)
    });
    taken.insert(free.clone());
    free
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        for (name, expected) in [
            ("Qwen2.5-7B-Instruct", Some((7.0, 7.0))),
            ("Qwen/Qwen2.5-0.5B-Instruct", Some((0.5, 0.5))),
            ("qwen2.5:7b", Some((7.0, 7.0))),
            ("deepseek-r1:1.5b-qwen-distill-q4_K_M", Some((1.5, 1.5))),
            ("mistral-7b.Q4_K_M.gguf", Some((7.0, 7.0))),
            ("Mixtral-8x7B-Instruct-v0.1", Some((56.0, 56.0))),
            ("Qwen3-30B-A3B", Some((30.0, 3.0))),
            ("Llama-4-Scout-17B-16E-Instruct", Some((17.0, 17.0))),
            ("SmolLM2-135M", Some((0.135, 0.135))),
            ("gpt-oss-20b", Some((20.0, 20.0))),
            ("internlm2_5-20b-chat", Some((20.0, 20.0))),
            ("model-4bit", None),
            ("phi-4", None),
            ("A3B", None),
            ("0B", None),
            ("..B", None),
            ("99999999999999999999B", None),
            ("b", None),
            ("", None),
            ("größe-7B", Some((7.0, 7.0))),
        ] {
            let size = Size::from_name(name).map(|size| (size.billions, size.active_billions));
            assert_eq!(size, expected, "{name}");
        }
    }

    #[test]
    fn names_become_legal() {
        for (id, name, pool) in [
            ("Qwen/Qwen2.5-7B-Instruct", "Qwen2.5-7B-Instruct", "qwen2.5-7b-instruct"),
            ("qwen2.5:7b", "qwen2.5:7b", "qwen2.5-7b"),
            ("/models/My Model/", "My-Model", "my-model"),
            (r#"C:\models\a"b.gguf"#, "a-b.gguf", "a-b.gguf"),
            ("größe", "gr--e", "gr--e"),
            ("/", "model", "model"),
            ("", "model", "model"),
        ] {
            assert_eq!((model_name(id).as_str(), pool_name(&model_name(id)).as_str()), (name, pool), "{id}");
        }
        let long = model_name(&"x".repeat(500));
        assert!(is_legal(&long) && is_legal(&format!("pool-{}", pool_name(&long))));
        for (name, legal) in [("a b", false), ("", false), ("ü", false), ("a\"", false), ("a/b:c", true)] {
            assert_eq!(is_legal(name), legal, "{name}");
        }
    }

    #[test]
    fn a_name_is_given_once() {
        let mut taken = BTreeSet::from(["auto".to_owned()]);
        let long = "x".repeat(NAME_MAX);
        for (names, expected) in [
            (vec!["auto"], "auto-2"),
            (vec!["auto"], "auto-3"),
            (vec!["m"], "m"),
            (vec!["m", "org/m"], "org/m"),
            (vec!["m", "org/m"], "m-2"),
            (vec![long.as_str()], long.as_str()),
        ] {
            let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
            assert_eq!(free_name(&names, &mut taken), expected);
        }
        assert!(is_legal(&free_name(std::slice::from_ref(&long), &mut taken)));
    }
}
