#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;
use crate::config::Config;
use crate::fleet::{Fleet, InstanceId};
use crate::openai::{Api, Prompt, RequestScan};
use crate::random::Random;

fn fleet() -> Fleet {
    Config::parse(include_bytes!("../../../envoy/routebalance.json")).unwrap().fleet
}

fn prompt_of(api: Api, body: &str, cut: usize) -> Prompt {
    let mut scan = RequestScan::new(api);
    body.as_bytes().chunks(cut).for_each(|piece| scan.push(piece));
    scan.finish().unwrap()
}

fn text(seed: usize, chars: usize) -> String {
    (0..)
        .map(|i| format!("w{} ", (i * 7 + seed) * 31 % 1_009))
        .flat_map(|w| w.chars().collect::<Vec<_>>())
        .take(chars)
        .collect()
}

/// A message as clients write it, its role first.
fn message(role: &str, text: &str) -> String {
    format!(r#"{{"role":"{role}","content":{}}}"#, serde_json::Value::from(text))
}

fn chat(system: &str, user: &str) -> String {
    format!(r#"{{"model":"auto","messages":[{},{}]}}"#, message("system", system), message("user", user))
}

fn keys(body: &str) -> Keys {
    Keys::new(Some(&prompt_of(Api::ChatCompletions, body, 64).prefix), 0, None, None)
}

/// Bytes of the beginning that both have in common, by their hashes.
fn shared_share(a: &Keys, b: &Keys) -> f64 {
    let both = a.prefix.iter().zip(&b.prefix).take_while(|(a, b)| a.0 == b.0);
    both.last().map_or(0.0, |(a, _)| a.1)
}

#[test]
fn hashes_do_not_depend_on_how_the_body_is_cut() {
    let body = chat(&text(1, 3_000), "A \"question\"\nwith an é and a 😀?");
    let whole = Keys::new(Some(&prompt_of(Api::ChatCompletions, &body, body.len()).prefix), 0, None, None);
    assert!(whole.prefix.len() > 8);
    for cut in [1, 2, 3, 7, 8, 9, 255, 256, 257, 1_000] {
        let keys = Keys::new(Some(&prompt_of(Api::ChatCompletions, &body, cut).prefix), 0, None, None);
        assert_eq!(keys, whole, "{cut}");
    }
}

#[test]
fn equal_beginnings_share_and_others_do_not() {
    let system = text(1, 6_000);
    let base = keys(&chat(&system, &text(2, 3_000)));
    let tools = |name: &str, user: &str| {
        let body = chat(&system, user);
        format!(r#"{{"tools":[{{"name":"{name}"}}],{}"#, &body[1..])
    };
    let three = |role: &str| {
        let [system, second, last] =
            [("system", &*system), (role, &*text(2, 3_000)), ("user", "And?")].map(|(r, t)| message(r, t));
        format!(r#"{{"messages":[{system},{second},{last}]}}"#)
    };
    // (name, other body, least and most share of `base` that is shared)
    let rows = [
        ("the same", chat(&system, &text(2, 3_000)), 0.8, 1.0),
        ("the same system prompt", chat(&system, &text(3, 3_000)), 0.53, 0.67),
        ("another system prompt", chat(&text(9, 6_000), &text(2, 3_000)), 0.0, 0.0),
        ("the next turn", three("user"), 0.8, 1.0),
        ("another role", three("assistant"), 0.53, 0.67),
        ("with tools", tools("f", &text(2, 3_000)), 0.0, 0.0),
        ("cut in two messages", chat(&system[..3_000], &system[3_000..]), 0.25, 0.34),
    ];
    for (name, body, least, most) in rows {
        let share = shared_share(&base, &keys(&body));
        assert!((least..=most).contains(&share), "{name}: {share}");
    }
    assert!(shared_share(&keys(&tools("f", "x")), &keys(&tools("f", "y"))) > 0.9);
    assert_eq!(shared_share(&keys(&tools("f", "x")), &keys(&tools("g", "x"))), 0.0);
    let prefix = prompt_of(Api::ChatCompletions, &chat(&system, "x"), 64).prefix;
    for other in [Keys::new(Some(&prefix), 1, None, None), Keys::new(Some(&prefix), 0, None, Some("adapter"))] {
        assert_eq!(shared_share(&Keys::new(Some(&prefix), 0, None, None), &other), 0.0);
    }
}

#[test]
fn a_match_is_at_most_a_sixth_too_short_and_bounded() {
    for chars in [0, 100, 255, 300, 1_000, 10_000, 50_000, 150_000, 1_000_000] {
        let prefix = prompt_of(Api::ChatCompletions, &chat(&text(1, chars), ""), 4_096).prefix;
        let keys = Keys::new(Some(&prefix), 0, None, None);
        assert!(keys.prefix.len() <= KEYS_MAX);
        let share = keys.prefix.last().map_or(0.0, |(_, share)| *share);
        // Below it, blocks of 256 bytes are coarser; above it, the last block ends.
        assert!(!(1_500..=150_000).contains(&chars) || share > 5.0 / 6.0 - 0.02, "{chars}: {share}");
        assert_eq!(share > 0.0, chars >= 255, "{chars}: {share}");
    }
}

#[test]
fn images_and_token_ids_are_part_of_the_prefix() {
    let image = |url: &str| {
        let content = serde_json::json!([{"type": "text", "text": text(1, 300)}, {"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text(2, 900)}]);
        keys(&serde_json::json!({"messages": [{"role": "user", "content": content}]}).to_string())
    };
    for other in ["data:b", "data:longer"] {
        let share = shared_share(&image("data:a"), &image(other));
        assert!(share > 0.0 && share < 0.3, "{other}: {share}");
    }
    let ids = |from: usize| {
        let ids: Vec<usize> = (0..400).chain(from..from + 400).collect();
        let body = serde_json::json!({ "prompt": ids }).to_string();
        Keys::new(Some(&prompt_of(Api::Completions, &body, 100).prefix), 0, None, None)
    };
    let share = shared_share(&ids(1_000), &ids(2_000));
    assert!(share > 0.3 && share < 0.5, "{share}");
}

/// Keys of a body of any API that takes conversations.
fn keys_of(api: Api, body: &str) -> Keys {
    Keys::new(Some(&prompt_of(api, body, 100).prefix), 0, None, None)
}

#[test]
fn the_same_beginning_however_it_is_written() {
    use Api::{ChatCompletions as Chat, Messages, Responses};
    let (s, u, a) = (text(1, 1_000), text(2, 1_000), text(3, 1_000));
    let (head, tail) = s.split_at(400);
    let conversation =
        format!(r#"{{"messages":[{},{},{}]}}"#, message("system", &s), message("user", &u), message("assistant", &a));
    let rest = format!("{},{}", message("user", &u), message("assistant", &a));
    let parts = |kind: &str, text: &str| format!(r#"[{{"type":"{kind}","text":"{text}"}}]"#);
    let rows = [
        ("role last", Chat, format!(r#"{{"messages":[{{"content":"{s}","role":"system"}},{rest}]}}"#)),
        (
            "lists of one part",
            Chat,
            format!(
                r#"{{"messages":[{{"role":"system","content":{}}},{{"content":{},"role":"user"}},{}]}}"#,
                parts("text", &s),
                parts("text", &u),
                message("assistant", &a)
            ),
        ),
        ("a field", Messages, format!(r#"{{"system":"{s}","messages":[{rest}]}}"#)),
        ("a field at the end", Messages, format!(r#"{{"messages":[{rest}],"max_tokens":7,"system":"{s}"}}"#)),
        (
            "a field of blocks",
            Messages,
            format!(
                r#"{{"messages":[{rest}],"system":[{{"type":"text","text":"{head}"}},{{"text":"{tail}","cache_control":{{"type":"ephemeral"}},"type":"text"}}]}}"#
            ),
        ),
        ("the last field counts", Messages, format!(r#"{{"system":"{u}","messages":[{rest}],"system":"{s}"}}"#)),
        (
            "the last messages count",
            Messages,
            format!(r#"{{"messages":[{}],"system":"{s}","messages":[{rest}]}}"#, message("user", &s)),
        ),
        ("instructions", Responses, format!(r#"{{"instructions":"{s}","input":[{rest}]}}"#)),
        (
            "items of messages",
            Responses,
            format!(
                r#"{{"input":[{{"type":"message","role":"user","content":{}}},{{"type":"message","content":{},"role":"assistant"}}],"instructions":"{s}"}}"#,
                parts("input_text", &u),
                parts("output_text", &a)
            ),
        ),
        ("a message as an item", Responses, format!(r#"{{"input":[{},{rest}]}}"#, message("system", &s))),
        (
            "nothing in the fields",
            Chat,
            format!(r#"{{"tools":[],"cache_salt":null,"documents":null,{}"#, &conversation[1..]),
        ),
        (
            "fields of the end",
            Chat,
            format!(r#"{{"n":1,"add_generation_prompt":true,"temperature":1,{}"#, &conversation[1..]),
        ),
    ];
    for (name, api, body) in rows {
        assert_eq!(keys_of(api, &body), keys(&conversation), "{name}");
    }
    let input = keys_of(Responses, &format!(r#"{{"input":"{u}","instructions":"{s}"}}"#));
    assert_eq!(input, keys(&chat(&s, &u)), "a string is a message of the user");
    let both = |first: &str, last: &str| keys_of(Responses, &format!("{{{first},{last}}}"));
    let (instructions, items) = (format!(r#""instructions":"{s}""#), format!(r#""input":[{}]"#, message("system", &u)));
    assert_eq!(both(&instructions, &items), both(&items, &instructions), "instructions and a message of the system");
    let spaced = |tools: &str| keys(&format!(r#"{{"tools":{tools},{}"#, &conversation[1..]));
    assert_eq!(spaced(r#"[{"name":"f","x":[1,true]}]"#), spaced("[ {\"name\": \"f\",\n\"x\": [1, true] } ]"));
}

#[test]
fn what_changes_the_beginning_shares_nothing() {
    let body = chat(&text(1, 2_000), &text(2, 500));
    let with = |field: &str, value: &str| keys(&format!(r#"{{"{field}":{value},{}"#, &body[1..]));
    let rows = [
        ("tools", r#"[{"name":"f"}]"#, r#"[{"name":"g"}]"#),
        ("tools", r#"[{"a":{"b":1},"c":2}]"#, r#"[{"a":{"b":1,"c":2}}]"#),
        ("functions", r#"[{"name":"f"}]"#, r#"[{"name":"g"}]"#),
        ("documents", r#"[{"title":"t","text":"a"}]"#, r#"[{"title":"t","text":"b"}]"#),
        ("chat_template", r#""{{ a }}""#, r#""{{ b }}""#),
        ("chat_template_kwargs", r#"{"enable_thinking":true}"#, r#"{"enable_thinking":false}"#),
        ("reasoning_effort", r#""low""#, r#""high""#),
        ("reasoning", r#"{"effort":"low"}"#, r#"{"effort":"high"}"#),
        ("cache_salt", r#""anna""#, r#""bert""#),
        ("mm_processor_kwargs", r#"{"fps":1}"#, r#"{"fps":2}"#),
        ("add_special_tokens", "true", "false"),
        ("truncate_prompt_tokens", "100", "200"),
    ];
    for (field, one, other) in rows {
        assert!(!with(field, one).prefix.is_empty() && with(field, one) == with(field, one), "{field}");
        for second in [with(field, other), keys(&body)] {
            assert_eq!(shared_share(&with(field, one), &second), 0.0, "{field}");
        }
    }
    let previous = |id: &str| keys_of(Api::Responses, &format!(r#"{{"input":"{}",{id}"n":1}}"#, text(1, 900)));
    let (one, other) = (r#""previous_response_id":"a","#, r#""previous_response_id":"b","#);
    assert_eq!(shared_share(&previous(one), &previous(other)), 0.0);
    assert_eq!(shared_share(&previous(one), &previous("")), 0.0);
}

#[test]
fn definitions_of_tools_are_shared_by_all_that_have_them() {
    let description = text(1, 4_000);
    let with = |user: &str| {
        let body = format!(r#"{{"messages":[{}],"tools":[{{"description":"{description}"}}]}}"#, message("user", user));
        keys(&body)
    };
    let share = shared_share(&with("Why?"), &with("How come?"));
    assert!(share > 0.95, "{share}");
}

#[test]
fn calls_of_tools_are_part_of_the_message() {
    let body = |call: &str| {
        let assistant = format!(r#"{{"content":"{}",{call}"role":"assistant"}}"#, text(1, 600));
        format!(r#"{{"messages":[{assistant},{}]}}"#, message("user", &text(2, 3_000)))
    };
    let called = |name: &str| format!(r#""tool_calls":[{{"function":{{"name":"{name}","arguments":"{{}}"}}}}],"#);
    let first = keys(&body(&called("f")));
    assert_eq!(shared_share(&first, &keys(&body(&called("f")))), shared_share(&first, &first));
    for other in [called("g"), String::new()] {
        let share = shared_share(&first, &keys(&body(&other)));
        assert!(share > 0.1 && share < 0.2, "{other}: {share}");
    }
}

/// A conversation with a long system prompt, as one of three APIs has it, its fields in any order.
struct Written<'a> {
    system: &'a str,
    user: &'a str,
    /// A field and its value.
    extra: Option<(&'a str, &'a str)>,
}

impl Written<'_> {
    fn keys(&self, random: &mut Random) -> Keys {
        let mut pick = |below: usize| (random.uniform() * below as f64) as usize;
        let api = [Api::ChatCompletions, Api::Messages, Api::Responses][pick(3)];
        let mut fields = ["model", "max_tokens", "temperature"].map(|name| format!(r#""{name}":null"#)).to_vec();
        fields.extend(self.extra.map(|(name, value)| format!(r#""{name}":{value}"#)));
        let mut message = |role: &str, text: &str| match pick(3) {
            0 => message(role, text),
            1 => format!(r#"{{"content":"{text}","role":"{role}"}}"#),
            _ => format!(r#"{{"content":[{{"text":"{text}","type":"text"}}],"role":"{role}"}}"#),
        };
        let user = message("user", self.user);
        match api {
            Api::ChatCompletions => {
                fields.push(format!(r#""messages":[{},{user}]"#, message("system", self.system)));
            }
            Api::Messages => {
                fields.extend([format!(r#""messages":[{user}]"#), format!(r#""system":"{}""#, self.system)])
            }
            _ => fields.extend([format!(r#""input":[{user}]"#), format!(r#""instructions":"{}""#, self.system)]),
        }
        for last in (1..fields.len()).rev() {
            fields.swap(last, pick(last + 1));
        }
        Keys::new(Some(&prompt_of(api, &format!("{{{}}}", fields.join(",")), 1 + pick(500)).prefix), 0, None, None)
    }
}

#[test]
fn the_order_of_fields_never_counts() {
    let values = [
        ("tools", r#"[{"name":"f"}]"#, r#"[{"name":"g"}]"#),
        ("chat_template_kwargs", r#"{"a":1}"#, r#"{"a":2}"#),
        ("documents", r#"[{"text":"a"}]"#, r#"[{"text":"b"}]"#),
        ("cache_salt", r#""a""#, r#""b""#),
    ];
    for seed in 0..1_000 {
        let mut random = Random::new(seed);
        let mut length = |least: usize, most: usize| least + (random.uniform() * (most - least) as f64) as usize;
        let (system_chars, user_chars) = (length(300, 6_000), length(1, 3_000));
        let [system, other_system] = [1, 2].map(|i| text(10 * seed as usize + i, system_chars));
        let [user, other_user] = [3, 4].map(|i| text(10 * seed as usize + i, user_chars));
        let (field, value, other_value) = values[seed as usize % values.len()];
        let written = |system, user, value| Written { system, user, extra: Some((field, value)) };
        let base = written(&system, &user, value).keys(&mut random);
        assert_eq!(written(&system, &user, value).keys(&mut random), base, "{seed}");
        let shared = |other: &Written<'_>, random: &mut Random| shared_share(&base, &other.keys(random));
        let share = shared(&written(&system, &other_user, value), &mut random);
        let least = system_chars as f64 / (system_chars + user_chars + 24) as f64;
        assert!(share >= least, "{seed}: {share}, the system prompt is {least}");
        let strangers = [
            written(&other_system, &user, value),
            written(&system, &user, other_value),
            Written { extra: None, ..written(&system, &user, value) },
        ];
        for stranger in strangers {
            assert_eq!(shared(&stranger, &mut random), 0.0, "{seed}");
        }
    }
}

fn cached(memory: &Memory, keys: &Keys, tokens: f64, at: u64) -> Vec<(usize, u64)> {
    let recall = memory.recall(keys, tokens, Duration::from_secs(at));
    let tokens = |i| recall.held().cached_tokens(i, tokens) as u64;
    (0..13).map(|i| (i, tokens(InstanceId::new(i)))).filter(|(_, tokens)| *tokens > 0).collect()
}

#[test]
fn memory_finds_the_longest_match_of_each_instance() {
    let fleet = fleet();
    let mut memory = Memory::new(&fleet);
    let system = text(1, 6_000);
    let (first, second, other) =
        (keys(&chat(&system, &text(2, 6_000))), keys(&chat(&system, &text(3, 6_000))), keys(&chat("", &text(4, 900))));
    let now = Duration::from_secs(1);
    assert_eq!(cached(&memory, &first, 3_000.0, 1), []);
    memory.place(&first.placement(InstanceId::new(2), 3_000, 0, 100, now));
    memory.place(&second.placement(InstanceId::new(5), 3_000, 0, 100, now));
    let found = cached(&memory, &first, 3_000.0, 1);
    assert!(matches!(found[..], [(2, 2_500..=3_000), (5, 1_200..=1_520)]), "{found:?}");
    assert_eq!(cached(&memory, &other, 300.0, 1), []);
    assert_eq!(cached(&memory, &first, 3_000.0, 700), [], "too long ago");
    memory.follow(&fleet, &[InstanceId::new(2)]);
    let found = cached(&memory, &first, 3_000.0, 1);
    assert!(matches!(found[..], [(5, _)]), "another instance is in its place: {found:?}");
    memory.place(&other.placement(InstanceId::new(99), 300, 0, 10, now));
    assert_eq!(cached(&memory, &other, 300.0, 1), [], "no such instance");
}

#[test]
fn what_the_kv_cache_had_to_drop_is_not_found() {
    let fleet = fleet();
    let kv_tokens = fleet.pool_of(InstanceId::new(0)).unwrap().1.limits.kv_tokens;
    let mut memory = Memory::new(&fleet);
    let first = keys(&chat(&text(1, 3_000), "x"));
    let now = Duration::from_secs(1);
    memory.place(&first.placement(InstanceId::new(0), 800, 0, 100, now));
    let mut filled = 0;
    for i in 2.. {
        assert_eq!(cached(&memory, &first, 800.0, 1).is_empty(), filled >= kv_tokens, "{filled} of {kv_tokens}");
        if filled >= kv_tokens {
            break;
        }
        memory.place(&keys(&chat(&text(i, 3_000), "y")).placement(InstanceId::new(0), 9_000, 0, 1_000, now));
        filled += 10_000;
    }
    // What hits the cache takes no room.
    memory.place(&first.placement(InstanceId::new(0), 800, 0, 100, now));
    for _ in 0..1_000 {
        memory.place(&first.placement(InstanceId::new(0), 90_000, 90_000, 0, now));
    }
    assert!(!cached(&memory, &first, 800.0, 1).is_empty());
}

#[test]
fn memory_is_bounded_and_what_is_used_stays() {
    let mut memory = Memory::new(&fleet());
    let hot = keys(&chat(&text(0, 3_000), "x"));
    let now = Duration::from_secs(1);
    for i in 0..20_000_u64 {
        let prefix = (0..8).map(|block| (i * 8 + block, 0.1)).collect();
        memory.place(&Keys { prefix, ..Keys::default() }.placement(InstanceId::new(1), 1, 0, 0, now));
        if i % 500 == 0 {
            memory.place(&hot.placement(InstanceId::new(1), 1, 0, 0, now));
        }
    }
    assert!(memory.len() <= KEPT + 100, "{}", memory.len());
    assert!(!cached(&memory, &hot, 800.0, 1).is_empty());
}

#[test]
fn sessions_and_adapters_are_remembered() {
    let mut memory = Memory::new(&fleet());
    let now = Duration::from_secs(1);
    let session = |name, kind| Keys::new(None, kind, Some(name), None);
    memory.place(&session("a", 0).placement(InstanceId::new(3), 400, 0, 100, now));
    assert_eq!(cached(&memory, &session("a", 0), 2_000.0, 1), [(3, 500)]);
    assert_eq!(cached(&memory, &session("a", 0), 300.0, 1), [(3, 299)], "the last token is always prefilled");
    assert_eq!(cached(&memory, &session("b", 0), 2_000.0, 1), []);
    assert_eq!(cached(&memory, &session("a", 1), 2_000.0, 1), [], "another API");
    assert_eq!(session("", 0), Keys::default(), "a session without a name is none");
    memory.place(&session("a", 0).answered(InstanceId::new(3), 900, now).unwrap());
    assert_eq!(cached(&memory, &session("a", 0), 2_000.0, 1), [(3, 900)]);
    assert_eq!(Keys::default().answered(InstanceId::new(3), 900, now), None);

    let adapter = |name: &str| Keys::new(None, 0, None, Some(name));
    memory.place(&adapter("x").placement(InstanceId::new(4), 10, 0, 10, now));
    memory.place(&Keys::of_adapter("z").placement(InstanceId::new(5), 0, 0, 0, now));
    let has = |name: &str, i| memory.recall(&adapter(name), 10.0, now).held().has_adapter(i);
    assert!(has("x", InstanceId::new(4)) && !has("x", InstanceId::new(5)) && !has("y", InstanceId::new(4)));
    assert!(has("z", InstanceId::new(5)) && !has("z", InstanceId::new(4)), "reported, never sent");
}
