//! What counts as text, what is counted beside it, and what counts nothing.

use super::*;

#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

/// The counts beside the text.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Counts {
    prompts: u32,
    media_parts: u32,
    token_ids: u64,
    tool_bytes: u64,
}

const ONE: Counts = Counts { prompts: 1, media_parts: 0, token_ids: 0, tool_bytes: 0 };

#[test]
fn text_and_counts() {
    let rows = [
        // Chat: strings and parts of every role, in order.
        (ChatCompletions, r#"{"messages":[{"role":"user","content":"Hi \"there\"\n"}]}"#, "Hi \"there\"\n", ONE),
        (
            ChatCompletions,
            r#"{"messages":[{"role":"system","content":"s"},{"role":"developer","content":"d"},{"role":"user","content":"u"},
               {"role":"assistant","content":"a"},{"role":"tool","tool_call_id":"x","content":"t"}]}"#,
            "s\nd\nu\na\nt",
            ONE,
        ),
        (
            ChatCompletions,
            r#"{"messages":[{"role":"user","content":[{"type":"text","text":"What is"},
               {"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA","text":"no"}},{"image_url":"http://x"},
               {"text":"this?","type":"text"},{"type":"input_audio","input_audio":{"data":"BBBB"}},"plain"]}]}"#,
            "What is\nthis?\nplain",
            Counts { media_parts: 3, ..ONE },
        ),
        (
            ChatCompletions,
            r#"{"messages":[{"content":""},{"content":"a"},{"content":""},{"content":null},{"content":"b"}]}"#,
            "a\nb",
            ONE,
        ),
        (
            ChatCompletions,
            r#"{"messages":[{"role":"assistant","content":null,"tool_calls":[{"id":"1","function":{"name":"f","arguments":"{}"}}]}],
               "tools":[{"content":"no","text":"no"}],"metadata":{"content":"no","messages":[{"content":"no"}]},"functions":[]}"#,
            "",
            Counts { tool_bytes: 53 + 30 + 2, ..ONE },
        ),
        (
            ChatCompletions,
            r#"{"prompt":"no","input":"no","system":"no","instructions":"no","messages":[{"content":"yes"}]}"#,
            "yes",
            ONE,
        ),
        (ChatCompletions, r#"{"messages":[{"name":"no","role":"user","content":{"text":"no"}},7]}"#, "", ONE),
        (ChatCompletions, r#"{"mess\u0061ges":[{"c\u006fntent":"\u00e9\ud83d\ude00"}]}"#, "é😀", ONE),
        (ChatCompletions, r#"{"messages":[{"content":"old"}],"messages":[{"content":"new"}]}"#, "new", ONE),
        // Completions: a prompt, a batch of them, token ids.
        (Completions, r#"{"prompt":"def main("}"#, "def main(", ONE),
        (Completions, r#"{"prompt":["a","","c"]}"#, "a\nc", Counts { prompts: 3, ..ONE }),
        (Completions, r#"{"prompt":[1,2,3]}"#, "", Counts { token_ids: 3, ..ONE }),
        (Completions, r#"{"prompt":[[1,2],[3]]}"#, "", Counts { prompts: 2, token_ids: 3, ..ONE }),
        (Completions, r#"{"prompt":["old","er"],"prompt":"new"}"#, "new", ONE),
        (Completions, r#"{"prompt":null,"prompt_embeds":"AAAA"}"#, "", ONE),
        (Completions, r#"{"prompt":"x","prompt_embeds":["AAAA","BBBB"]}"#, "x", Counts { prompts: 3, ..ONE }),
        (Messages, r#"{"system":{"text":"s"},"messages":[{"content":"u"}]}"#, "u", ONE),
        (Completions, r#"{"prompt":"x","suffix":"no","stop":["no"],"logit_bias":{"1":2}}"#, "x", ONE),
        // Responses: a string or items, and instructions.
        (Responses, r#"{"input":"Say hello","instructions":"Be brief"}"#, "Say hello\nBe brief", ONE),
        (
            Responses,
            r#"{"instructions":"i","input":[{"role":"user","content":"a"},{"type":"message","role":"user","content":[
               {"type":"input_text","text":"b"},{"type":"input_image","image_url":"data:AAAA"}]},
               {"role":"assistant","content":[{"type":"output_text","text":"c","annotations":[{"text":"no"}]}]},
               {"type":"function_call","name":"f","arguments":"{}"},{"type":"function_call_output","output":"d"}]}"#,
            "i\na\nb\nc\nd",
            Counts { media_parts: 1, tool_bytes: 4, ..ONE },
        ),
        // Messages: blocks, tool results in blocks, images in tool results.
        (Messages, r#"{"system":"s","max_tokens":1,"messages":[{"role":"user","content":"u"}]}"#, "s\nu", ONE),
        (
            Messages,
            r#"{"system":[{"type":"text","text":"s","cache_control":{"type":"image"}}],"messages":[
               {"role":"assistant","content":[{"type":"tool_use","name":"f","input":{"text":"no","content":"no"}}]},
               {"role":"user","content":[{"type":"tool_result","content":"r"},{"type":"tool_result","content":[
               {"type":"text","text":"q"},{"type":"image","source":{"type":"base64","data":"AAAA"}}]},
               {"type":"image","source":{"type":"url","url":"x"}},{"type":"text","text":"u"}]}]}"#,
            "s\nr\nq\nu",
            Counts { media_parts: 2, tool_bytes: 28, ..ONE },
        ),
        (CountTokens, r#"{"system":"s","messages":[{"role":"user","content":"u"}]}"#, "s\nu", ONE),
        // Embeddings: as the prompts of Completions, or a conversation.
        (Embeddings, r#"{"input":"x"}"#, "x", ONE),
        (Embeddings, r#"{"input":""}"#, "", ONE),
        (Embeddings, r#"{"input":["x","y"]}"#, "x\ny", Counts { prompts: 2, ..ONE }),
        (Embeddings, r#"{"input":[[5,6],[7]]}"#, "", Counts { prompts: 2, token_ids: 3, ..ONE }),
        (Embeddings, r#"{"messages":[{"role":"user","content":"x"}]}"#, "x", ONE),
        (
            Embeddings,
            r#"{"input":[{"text":"x"},{"text":"y","image":"data:AAAA"}]}"#,
            "x\ny",
            Counts { prompts: 2, media_parts: 1, ..ONE },
        ),
        (
            ChatCompletions,
            r#"{"messages":[{"content":[{"type":"image_embeds","image_embeds":{"a":"AAAA"}},{"type":"audio_url","audio_url":{"url":"x"}},
               {"type":"video_url","video_url":"x"},{"type":"file","file":{"file_id":"f"}}]}]}"#,
            "",
            Counts { media_parts: 4, ..ONE },
        ),
        (Messages, r#"{"messages":[{"content":[{"type":"document","source":{"type":"text","data":"x"}}]}]}"#, "", ONE),
        (Embeddings, r#"{"input":{"content":[{"type":"text","text":"x"}]}}"#, "x", ONE),
    ];
    for (api, body, text, expected) in rows {
        let Prompt { text: seen, prompts, media_parts, token_ids, tool_bytes, bytes, has_input, .. } =
            prompt(api, body);
        assert_eq!(format!("{seen:?}"), window(text), "{body}");
        assert_eq!(Counts { prompts, media_parts, token_ids, tool_bytes }, expected, "{body}");
        assert_eq!((bytes, has_input), (body.len() as u64, true), "{body}");
    }
}

/// Text in whatever field of a message counts as much as in `content`; what no server tokenises counts nothing.
#[test]
fn unread_text() {
    let text = "lorem ipsum dolor ".repeat(500);
    let tokens = {
        let mut count = TextCount::default();
        count.push_str(&text);
        count.estimated_tokens()
    };
    let payload = format!("data:image/png;base64,{}", "AbC9".repeat(2_000));
    let base64 = "AbC9".repeat(2_000);
    let message = |field: &str, value: &str| format!(r#"{{"messages":[{{"role":"assistant","{field}":{value}}}]}}"#);
    let part = |value: &str| format!(r#"{{"messages":[{{"role":"user","content":[{value}]}}]}}"#);
    let item = |value: &str| format!(r#"{{"input":[{value}]}}"#);
    let rows = [
        (ChatCompletions, message("reasoning_content", &format!("\"{text}\"")), 1),
        (ChatCompletions, message("reasoning", &format!("\"{text}\"")), 1),
        (ChatCompletions, message("reasoning", &format!(r#"{{"steps":[{{"say":"{text}"}},"{text}"]}}"#)), 2),
        (ChatCompletions, message("tomorrow", &format!(r#"["{text}",["{text}"]]"#)), 2),
        (ChatCompletions, message("content", &format!(r#"{{"type":"text","text":"{text}"}}"#)), 1),
        (ChatCompletions, part(&format!(r#"{{"type":"thinking","thinking":"{text}"}}"#)), 1),
        (ChatCompletions, part(&format!(r#"{{"type":"new","text":{{"value":"{text}"}}}}"#)), 1),
        (ChatCompletions, part(&format!(r#"["{text}"]"#)), 1),
        (ChatCompletions, format!(r#"{{"messages":[["{text}"],{{}}]}}"#), 1),
        (ChatCompletions, format!(r#"{{"messages":["{text}"]}}"#), 1),
        (ChatCompletions, format!(r#"{{"messages":[{{}}],"documents":[{{"text":"{text}","id":"{text}"}}]}}"#), 2),
        (ChatCompletions, format!(r#"{{"messages":[{{}}],"chat_template_kwargs":{{"note":"{text}"}}}}"#), 1),
        (ChatCompletions, format!(r#"{{"messages":[{{}}],"chat_template":"{text}"}}"#), 1),
        (Completions, format!(r#"{{"prompt":"x","suffix":"{text}"}}"#), 1),
        (Completions, format!(r#"{{"prompt":[["{text}",5]]}}"#), 1),
        (
            Messages,
            part(&format!(r#"{{"type":"document","title":"{text}","source":{{"type":"text","data":"{text}"}}}}"#)),
            2,
        ),
        (
            Messages,
            part(&format!(r#"{{"type":"search_result","source":"{text}","content":[{{"type":"x","y":"{text}"}}]}}"#)),
            1,
        ),
        (Responses, item(&format!(r#"{{"type":"custom_tool_call","call_id":"{text}","input":"{text}"}}"#)), 1),
        (
            Responses,
            item(&format!(r#"{{"type":"reasoning","summary":[{{"type":"summary_text","text":"{text}"}}]}}"#)),
            1,
        ),
        (Responses, item(&format!(r#"{{"type":"mcp_call","output":{{"a":"{text}"}},"error":"{text}"}}"#)), 2),
        // Nested deeper than any API does.
        (
            Messages,
            part(&format!(
                r#"{{"content":[{{"content":[{{"content":[{{"content":[{{"type":"text","text":"{text}"}}]}}]}}]}}]}}"#
            )),
            1,
        ),
        // Payloads.
        (ChatCompletions, message("audio", &format!(r#"{{"id":"{text}","data":"{base64}"}}"#)), 0),
        (ChatCompletions, message("blob", &format!("\"{base64}\"")), 0),
        (ChatCompletions, message("blob", &format!("\"{payload}\"")), 0),
        (ChatCompletions, part(&format!(r#"{{"type":"image_url","image_url":"{payload}"}}"#)), 0),
        (ChatCompletions, part(&format!(r#"{{"type":"image_url","image_url":{{"url":"{payload}"}}}}"#)), 0),
        (ChatCompletions, part(&format!(r#"{{"type":"text","text":"","cache_control":{{"a":["{text}"]}}}}"#)), 0),
        (Messages, part(&format!(r#"{{"type":"thinking","thinking":"","signature":"{text}"}}"#)), 0),
        (Messages, part(&format!(r#"{{"type":"redacted_thinking","data":"{base64}"}}"#)), 0),
        (Messages, part(&format!(r#"{{"type":"image","source":{{"type":"base64","data":"{base64}"}}}}"#)), 0),
        (Responses, item(&format!(r#"{{"type":"reasoning","encrypted_content":"{text}","summary":[]}}"#)), 0),
        (Responses, item(&format!(r#"{{"type":"compaction","encrypted_content":"{base64}"}}"#)), 0),
        // Not in a message.
        (ChatCompletions, format!(r#"{{"messages":[{{}}],"metadata":{{"note":"{text}"}},"user":"{text}"}}"#), 0),
    ];
    for (api, body, times) in rows {
        for piece in [body.len(), 1_000, 1] {
            let seen = in_pieces(api, &body, piece).unread.estimated_tokens();
            let expected = tokens * times;
            assert!(seen.abs_diff(expected) <= 20 * times, "{seen} for {expected}: {}", &body[..120]);
        }
    }
    // Fields that stand in for the conversation, and what a repeated one has replaced.
    let prompt_tokens = |api, body: &str| {
        let prompt = prompt(api, body);
        prompt.token_ids + prompt.replaced_tokens + prompt.text.tokens_to_read() + prompt.unread.estimated_tokens()
    };
    for (api, body, least) in [
        (ChatCompletions, r#"{"messages":[{}],"input_ids":[1,2,3]}"#.to_owned(), 3),
        (Completions, r#"{"prompt":"x","prompt_token_ids":[[1],[2,3]]}"#.to_owned(), 3),
        (ChatCompletions, format!(r#"{{"messages":[{{}}],"prompt_token_ids_b64":"{base64}"}}"#), 1_000),
        (Responses, format!(r#"{{"input":"x","previous_input_messages":[{{"content":"{text}"}}]}}"#), tokens),
        (Responses, format!(r#"{{"instructions":"{text}","input":null,"input":"x"}}"#), tokens),
        (Messages, format!(r#"{{"system":"{text}","messages":[],"messages":[{{"content":"x"}}]}}"#), tokens),
        (Completions, format!(r#"{{"prompt":"x","suffix":"data: {text}"}}"#), tokens),
        (ChatCompletions, format!(r#"{{"messages":[{{}}],"documents":[{{"{text}":1,"url":"{text}"}}]}}"#), tokens),
        (Completions, format!(r#"{{"prompt":"x","prompt_embeds":["{}"]}}"#, "AAAA".repeat(10_000)), 3),
    ] {
        let seen = prompt_tokens(api, &body);
        assert!(seen >= least, "{seen}, and not {least}: {}", &body[..40]);
    }
    assert_eq!(prompt(ChatCompletions, r#"{"messages":[{},{},{}]}"#).messages, 3);
    // A role, a name and an id are read, but not kept whole.
    for field in ["role", "name", "tool_call_id"] {
        let body = format!(r#"{{"messages":[{{"{field}":"{text}","content":""}}]}}"#);
        assert!(prompt(ChatCompletions, &body).tool_bytes >= text.len() as u64, "{field}");
    }
}

/// What is not read does not change which prefixes are taken for the same.
#[test]
fn unread_text_is_no_prefix() {
    let of = |fields: &str| {
        let body = format!(r#"{{"messages":[{{"role":"user","content":"a"{fields}}}]}}"#);
        format!("{:?}", prompt(ChatCompletions, &body).prefix)
    };
    let plain = of("");
    for fields in [r#","cache_control":{"type":"ephemeral"}"#, r#","id":"1""#, r#","tomorrow":"text""#] {
        assert_eq!(of(fields), plain, "{fields}");
    }
}
