//! What a server says of itself: its list of models, and the size of its KV cache.

use std::str::FromStr;

use serde_json::Value;

/// More than any cache holds: such a number is an error.
const KV_TOKENS_MAX: u64 = 1 << 40;

/// A model of a server with the names that it has there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ServedModel {
    /// The names that requests may use, never none.
    pub(super) ids: Vec<String>,
    /// What was loaded, where the server says so.
    pub(super) root: Option<String>,
    /// Longest context in tokens, where the server says so.
    pub(super) max_model_len: Option<u32>,
    /// Its LoRA adapters.
    pub(super) adapters: Vec<String>,
}

/// Reads the answer of `GET /v1/models`. Names with one root are one model; an entry with a parent is an adapter of it.
///
/// # Errors
/// The end of a sentence that begins with the server.
pub(super) fn read_models(body: &[u8]) -> Result<Vec<ServedModel>, String> {
    if body.trim_ascii_start().starts_with(b"<") {
        return Err("answers /v1/models with a page for people and not with JSON".to_owned());
    }
    let answer: Value =
        serde_json::from_slice(body).map_err(|e| format!("answers /v1/models with what is no JSON: {e}"))?;
    // Ollama's list is null where it is empty.
    let entries = match answer.get("data") {
        Some(Value::Array(entries)) => entries.as_slice(),
        Some(Value::Null) => &[],
        _ => return Err("answers /v1/models with JSON that has no list `data`".to_owned()),
    };
    let text = |entry: &Value, field: &str| {
        entry.get(field).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned)
    };
    let mut models: Vec<ServedModel> = Vec::new();
    for entry in entries.iter().filter(|entry| text(entry, "parent").is_none()) {
        let Some(id) = text(entry, "id") else { continue };
        let root = text(entry, "root");
        let max_model_len = entry.get("max_model_len").and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
        let max_model_len = max_model_len.filter(|tokens| *tokens > 0);
        match models.iter_mut().find(|model| model.ids.contains(&id) || root.is_some() && model.root == root) {
            Some(model) if model.ids.contains(&id) => {}
            Some(model) => model.ids.push(id),
            None => models.push(ServedModel { ids: vec![id], root, max_model_len, adapters: Vec::new() }),
        }
    }
    if models.is_empty() {
        return Err("serves no model: its /v1/models lists none".to_owned());
    }
    for entry in entries {
        let (Some(id), Some(parent)) = (text(entry, "id"), text(entry, "parent")) else { continue };
        let alone = models.len() == 1;
        if let Some(model) = models.iter_mut().find(|model| alone || model.ids.contains(&parent))
            && !model.adapters.contains(&id)
        {
            model.adapters.push(id);
        }
    }
    Ok(models)
}

/// KV tokens of an instance of vLLM, all engines together, by its metrics page.
pub(super) fn read_kv_tokens(page: &[u8]) -> Option<u64> {
    let page = String::from_utf8_lossy(page);
    let (mut tokens, mut blocks) = (0_u64, 0_u64);
    for line in page.lines().filter_map(|line| line.trim_start().strip_prefix("vllm:cache_config_info")) {
        let labels = labels(line);
        let number = |name: &str| -> Option<u64> {
            let (_, value) = labels.iter().find(|(label, _)| label == name)?;
            let value = f64::from_str(value).ok().filter(|value| *value >= 1.0)?;
            Some(value as u64).filter(|value| *value <= KV_TOKENS_MAX)
        };
        match (number("kv_cache_size_tokens"), number("num_gpu_blocks"), number("block_size")) {
            (Some(of_engine), _, _) => tokens = tokens.saturating_add(of_engine),
            // vLLM shows the blocks of all engines at each of them.
            (None, Some(count), Some(size)) => blocks = blocks.max(count.saturating_mul(size)),
            _ => {}
        }
    }
    [tokens, blocks].into_iter().find(|tokens| (1..=KV_TOKENS_MAX).contains(tokens))
}

/// The labels of a line of a metrics page, from its `{` on; those before the first that is malformed.
fn labels(line: &str) -> Vec<(String, String)> {
    let mut labels = Vec::new();
    let mut rest = line.strip_prefix('{').unwrap_or_default();
    while let Some((name, quoted)) = rest.split_once("=\"") {
        let mut value = String::new();
        let mut characters = quoted.chars();
        loop {
            match characters.next() {
                Some('"') => break,
                Some('\\') => value.extend(characters.next()),
                Some(character) => value.push(character),
                None => return labels,
            }
        }
        labels.push((name.trim().to_owned(), value));
        rest = characters.as_str().trim_start_matches(',');
        if rest.starts_with('}') {
            break;
        }
    }
    labels
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn model(ids: &[&str], root: Option<&str>, max_model_len: Option<u32>, adapters: &[&str]) -> ServedModel {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        ServedModel { ids: owned(ids), root: root.map(str::to_owned), max_model_len, adapters: owned(adapters) }
    }

    #[test]
    fn lists_of_models_are_read() {
        let vllm = |id: &str, parent: Option<&str>, len: Option<u32>| json!({"id": id, "object": "model", "owned_by": "vllm", "root": "tiny", "parent": parent, "max_model_len": len});
        for (data, expected) in [
            (json!([vllm("tiny-a", None, Some(2048))]), vec![model(&["tiny-a"], Some("tiny"), Some(2048), &[])]),
            (
                json!([vllm("a", None, Some(8)), vllm("b", None, Some(8)), vllm("a", None, Some(8))]),
                vec![model(&["a", "b"], Some("tiny"), Some(8), &[])],
            ),
            (
                json!([vllm("a", None, Some(8)), vllm("sql", Some("a"), None), vllm("sql", Some("a"), None)]),
                vec![model(&["a"], Some("tiny"), Some(8), &["sql"])],
            ),
            // The parent may be named otherwise; with several models, nobody knows whose it is.
            (
                json!([vllm("a", None, None), vllm("sql", Some("hub/a"), None)]),
                vec![model(&["a"], Some("tiny"), None, &["sql"])],
            ),
            (
                json!([{"id": "a"}, {"id": "b"}, {"id": "sql", "parent": "b"}, {"id": "lost", "parent": "c"}]),
                vec![model(&["a"], None, None, &[]), model(&["b"], None, None, &["sql"])],
            ),
            // Ollama and llama-server name no root.
            (
                json!([{"id": "qwen2.5:7b", "owned_by": "library"}, {"id": "gemma3:4b"}]),
                vec![model(&["qwen2.5:7b"], None, None, &[]), model(&["gemma3:4b"], None, None, &[])],
            ),
            // Entries and fields of other types say nothing.
            (
                json!([7, {"id": 7}, {"id": ""}, {"id": "a", "root": 1, "max_model_len": "8192", "parent": ""}, null]),
                vec![model(&["a"], None, None, &[])],
            ),
            (json!([{"id": "a", "max_model_len": 0}]), vec![model(&["a"], None, None, &[])]),
            (json!([{"id": "a", "max_model_len": 1_u64 << 40}]), vec![model(&["a"], None, None, &[])]),
        ] {
            let body = json!({"object": "list", "data": data}).to_string();
            assert_eq!(read_models(body.as_bytes()), Ok(expected), "{body}");
        }
    }

    #[test]
    fn what_is_no_list_is_said() {
        for (body, part) in [
            ("", "no JSON"),
            ("\n <!doctype html><html>", "page for people"),
            ("{\"data\":[", "no JSON"),
            ("[]", "no list"),
            ("{\"error\":{\"message\":\"no\"}}", "no list"),
            ("{\"data\":{}}", "no list"),
            ("{\"data\":[]}", "serves no model"),
            ("{\"data\":null}", "serves no model"),
            ("{\"data\":[{\"id\":\"sql\",\"parent\":\"a\"}]}", "serves no model"),
        ] {
            let problem = read_models(body.as_bytes()).unwrap_err();
            assert!(problem.contains(part), "{body}: {problem}");
        }
        assert!(read_models(b"\xff\xfe").is_err());
    }

    #[test]
    fn kv_tokens_are_read() {
        let line = |labels: &str| format!("vllm:cache_config_info{{{labels}}} 1.0\n");
        let of = |engine: u32, tokens: &str| {
            line(&format!(
                r#"_block_size_resolved="True",block_size="128",engine="{engine}",kv_cache_size_tokens="{tokens}",num_gpu_blocks="16384""#
            ))
        };
        for (page, expected) in [
            (of(0, "1048576"), Some(1_048_576)),
            (of(0, "1048576") + &of(1, "1048576"), Some(2_097_152)),
            (of(0, "None"), Some(2_097_152)),
            (of(0, "None") + &of(1, "None"), Some(2_097_152)),
            (of(0, "0"), Some(2_097_152)),
            (line(r#"block_size="16",num_gpu_blocks="4812""#), Some(76_992)),
            (line(r#"a="x\"},block_size=\"7",block_size="16",num_gpu_blocks="10""#), Some(160)),
            (line(r#"block_size="16",num_gpu_blocks="None""#), None),
            (line(r#"block_size="16",num_gpu_blocks="inf""#), None),
            (line(r#"block_size="-16",num_gpu_blocks="10""#), None),
            (line(r#"block_size="1099511627776",num_gpu_blocks="1099511627776""#), None),
            ("vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"1".to_owned(), None),
            ("# TYPE vllm:cache_config_info gauge\nvllm:num_requests_running 0\n".to_owned(), None),
            ("<html>".to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(read_kv_tokens(page.as_bytes()), expected, "{page}");
        }
    }
}
