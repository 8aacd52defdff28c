//! The tables: a request, and what its user gets. Each row runs through a real Envoy.

use serde_json::Value;

use crate::harness::{Gateway, Reply, Request};
use crate::http;

/// A request that an instance serves: name, path, body with the value of `model` between « and » (nothing between them: the field
/// is missing), and the pool that must serve it, if only one may.
pub(crate) type Served = (&'static str, &'static str, &'static str, Option<&'static str>);

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const RESPONSES: &str = "/v1/responses";
const MESSAGES: &str = "/v1/messages";
const EMBEDDINGS: &str = "/v1/embeddings";

/// Every API, streaming and not.
pub(crate) const APIS: &[Served] = &[
    (
        "chat",
        CHAT,
        r#"{"model":«"auto"»,"messages":[{"role":"user","content":"Name three rivers."}],"max_tokens":40}"#,
        None,
    ),
    (
        "chat as a stream",
        CHAT,
        r#"{"model":«"auto"»,"messages":[{"role":"user","content":"Name three rivers."}],"max_tokens":40,"stream":true}"#,
        None,
    ),
    (
        "chat as a stream with usage",
        CHAT,
        r#"{"model":«"auto"»,"stream":true,"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"Name a lake."}]}"#,
        None,
    ),
    (
        "chat with a system prompt, parts, an image, tools and two answers",
        CHAT,
        r#"{"model":«"auto"»,"n":2,"max_completion_tokens":9,"temperature":0.5,"messages":[{"role":"system","content":"Be brief."},
          {"role":"user","content":[{"type":"text","text":"What \u00e9 is \ud83d\ude00 this?"},{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}]},
          {"role":"assistant","content":null,"tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":"{\"model\":\"x\"}"}}]},
          {"role":"tool","tool_call_id":"c","content":"42"}],
          "tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{"model":{"type":"string"}}}}}]}"#,
        None,
    ),
    ("completions of a text", COMPLETIONS, r#"{"model":«"auto"»,"prompt":"Once upon a time","max_tokens":12}"#, None),
    ("completions of a batch", COMPLETIONS, r#"{"model":«"auto"»,"prompt":["One","Two"],"max_tokens":5}"#, None),
    ("completions of token ids", COMPLETIONS, r#"{"model":«"auto"»,"prompt":[1,2,3,4],"max_tokens":5}"#, None),
    (
        "completions as a stream",
        COMPLETIONS,
        r#"{"model":«"auto"»,"prompt":"Once","max_tokens":12,"stream":true}"#,
        None,
    ),
    ("responses", RESPONSES, r#"{"model":«"auto"»,"input":"Name a sea.","max_output_tokens":20}"#, None),
    (
        "responses with instructions and items",
        RESPONSES,
        r#"{"model":«"auto"»,"instructions":"Be brief.","input":[{"role":"user","content":[{"type":"input_text","text":"Hello"}]}],"max_output_tokens":20}"#,
        None,
    ),
    (
        "responses as a stream",
        RESPONSES,
        r#"{"model":«"auto"»,"input":"Name a sea.","max_output_tokens":20,"stream":true}"#,
        None,
    ),
    (
        "messages",
        MESSAGES,
        r#"{"model":«"auto"»,"max_tokens":20,"system":"Be brief.","messages":[{"role":"user","content":"Name a sea."}]}"#,
        None,
    ),
    (
        "messages as a stream",
        MESSAGES,
        r#"{"model":«"auto"»,"max_tokens":20,"stream":true,"messages":[{"role":"user","content":[{"type":"text","text":"Name a sea."}]}]}"#,
        None,
    ),
    (
        "count_tokens",
        "/v1/messages/count_tokens",
        r#"{"model":«"auto"»,"messages":[{"role":"user","content":"How many tokens are these?"}]}"#,
        None,
    ),
    ("embeddings", EMBEDDINGS, r#"{"model":«"auto"»,"input":"a sea","dimensions":4}"#, Some("bge-small")),
    (
        "embeddings of a batch",
        EMBEDDINGS,
        r#"{"model":«"auto"»,"input":["a sea","a lake"],"dimensions":4}"#,
        Some("bge-small"),
    ),
];

/// Every way to name a model.
pub(crate) const NAMES: &[Served] = &[
    ("no model means any", CHAT, r#"{«»"messages":[{"role":"user","content":"Hi"}],"max_tokens":3}"#, None),
    ("null means any", CHAT, r#"{"model": «null» ,"messages":[{"role":"user","content":"Hi"}],"max_tokens":3}"#, None),
    (
        "a model's name means its pool",
        CHAT,
        r#"{"model":«"Qwen2.5-32B-Instruct"»,"messages":[{"role":"user","content":"Hi"}],"max_tokens":3}"#,
        Some("qwen2.5-32b"),
    ),
    (
        "a served name means its pool, and the body passes as it is",
        CHAT,
        r#"{"model":«"Qwen/Qwen2.5-3B-Instruct"»,"messages":[{"role":"user","content":"Hi"}],"max_tokens":3}"#,
        Some("qwen2.5-3b"),
    ),
    (
        "an escaped name is the same name",
        CHAT,
        r#"{"model":«"Qwen2.5\u002d3B-Instruct"»,"messages":[{"role":"user","content":"Hi"}],"max_tokens":3}"#,
        Some("qwen2.5-3b"),
    ),
    (
        "a model named after the messages, as openai-python does it",
        CHAT,
        r#"{"messages":[{"role":"user","content":"Say \"model\": \"no\""}],"model":«"Qwen2.5-72B-Instruct"»,"max_tokens":3}"#,
        Some("qwen2.5-72b"),
    ),
    (
        "the last of two models counts",
        CHAT,
        r#"{"model":"Qwen2.5-3B-Instruct","messages":[{"role":"user","content":"Hi"}],"max_tokens":3,"model":«"Qwen2.5-72B-Instruct"»}"#,
        Some("qwen2.5-72b"),
    ),
    (
        "an embedding model for embeddings",
        EMBEDDINGS,
        r#"{"input":"a sea","dimensions":2,"model":«"bge-small-en-v1.5"»}"#,
        Some("bge-small"),
    ),
    (
        "a path with a query",
        "/v1/chat/completions?api-version=1",
        r#"{"messages":[{"role":"user","content":"Hi"}],"model":«"auto"»}"#,
        None,
    ),
    (
        "spaces and line feeds",
        CHAT,
        "{ \"messages\" : [ {\"role\":\"user\",\"content\":\"Hi\"} ] ,\n\t\"model\" :\r\n «\"auto\"» }\n",
        None,
    ),
];

/// Whose error shape.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shape {
    OpenAi,
    Anthropic,
}

/// A request that the gateway itself answers with an error: name, path, body, status, shape, a part of the sentence.
pub(crate) type Refused = (&'static str, &'static str, &'static str, u16, Shape, &'static str);

const HI: &str = r#"{"model":"auto","messages":[{"role":"user","content":"Hi"}],"max_tokens":3}"#;

pub(crate) const REFUSED: &[Refused] = &[
    (
        "an unknown model",
        CHAT,
        r#"{"model":"gpt-9","messages":[{"role":"user","content":"Hi"}]}"#,
        404,
        Shape::OpenAi,
        "`gpt-9`",
    ),
    (
        "an unknown model in messages",
        MESSAGES,
        r#"{"model":"gpt-9","max_tokens":1,"messages":[{"role":"user","content":"Hi"}]}"#,
        404,
        Shape::Anthropic,
        "`gpt-9`",
    ),
    ("an unknown model to embed", EMBEDDINGS, r#"{"model":"gpt-9","input":"a"}"#, 404, Shape::OpenAi, "`gpt-9`"),
    (
        "an embedding model asked to chat",
        CHAT,
        r#"{"model":"bge-small-en-v1.5","messages":[{"role":"user","content":"Hi"}]}"#,
        404,
        Shape::OpenAi,
        "text generation",
    ),
    (
        "a chat model asked to embed",
        EMBEDDINGS,
        r#"{"model":"Qwen2.5-3B-Instruct","input":"a"}"#,
        404,
        Shape::OpenAi,
        "embeddings",
    ),
    ("a body that is not JSON", CHAT, r#"{"model":"auto","messages":[}"#, 400, Shape::OpenAi, "JSON"),
    ("a body that is not JSON, in messages", MESSAGES, "hello", 400, Shape::Anthropic, "JSON"),
    ("a body that ends too early", RESPONSES, r#"{"model":"auto","input":"a"#, 400, Shape::OpenAi, "JSON"),
    ("an empty body", CHAT, "", 400, Shape::OpenAi, ""),
    ("an empty body to count", "/v1/messages/count_tokens", "", 400, Shape::Anthropic, ""),
    ("a body of spaces", COMPLETIONS, "  \n ", 400, Shape::OpenAi, ""),
    ("a body that is no object", CHAT, r#"[{"model":"auto"}]"#, 400, Shape::OpenAi, "object"),
    ("no messages", CHAT, r#"{"model":"auto","max_tokens":3}"#, 400, Shape::OpenAi, "messages"),
    ("empty messages", MESSAGES, r#"{"model":"auto","max_tokens":3,"messages":[]}"#, 400, Shape::Anthropic, "messages"),
    ("no prompt", COMPLETIONS, r#"{"model":"auto"}"#, 400, Shape::OpenAi, "prompt"),
    ("no input", RESPONSES, r#"{"model":"auto"}"#, 400, Shape::OpenAi, "input"),
    ("messages of the wrong type", CHAT, r#"{"model":"auto","messages":7}"#, 400, Shape::OpenAi, "messages"),
    (
        "a model of the wrong type",
        CHAT,
        r#"{"model":7,"messages":[{"role":"user","content":"Hi"}]}"#,
        400,
        Shape::OpenAi,
        "model",
    ),
];

/// A request that is none of the filter's business: name, method, path, headers, body.
pub(crate) type Passed =
    (&'static str, &'static str, &'static str, &'static [(&'static str, &'static str)], &'static str);

pub(crate) const PASSED: &[Passed] = &[
    ("a GET on a POST path", "GET", CHAT, &[], ""),
    ("a ping", "GET", "/ping", &[], ""),
    ("a version", "GET", "/version", &[], ""),
    ("a path that is not served", "POST", "/v1/audio/speech", &[], HI),
    ("feedback that nobody has configured", "POST", "/routebalance/feedback", &[], r#"{"id":"a","score":1}"#),
    ("another path with a body", "POST", "/v1/load_lora_adapter", &[], r#"{"lora_name":"a b c"}"#),
    ("a call that names no model of ours", "POST", "/v1/audio/speech", &[], r#"{"model":"tts-1","input":"Hi"}"#),
    ("a call of a model in a form that is none", "POST", "/v1/audio/transcriptions", &[], "--B--"),
    ("an encoded body", "POST", CHAT, &[("content-encoding", "x-ours")], "\x1f\x08 not ours to read"),
    (
        "a packed body on another path",
        "POST",
        "/v1/files",
        &[("content-encoding", "gzip")],
        "\x1f\x08 not ours to read",
    ),
];

/// What a client may try in order to choose for itself.
pub(crate) fn spoofed(request: Request, gateway: &Gateway) -> Request {
    let other = gateway.pool("qwen2.5-72b");
    let address = &gateway.config().fleet.instances[other.instances[0].index()].address;
    request
        .header("x-routebalance-cluster", &other.cluster)
        .header("x-gateway-destination-endpoint", address)
        .header("X-Gateway-Destination-Endpoint", address)
        .header("x-routebalance-model", "mine")
        .header("x-routebalance-pool", "mine")
        .header("x-routebalance-rung", "mine")
        .header("x-routebalance-endpoint", "mine")
}

/// The body that is sent, and the one that an instance of this served name must receive.
pub(crate) fn bodies(template: &str, served_model: &str) -> (String, String) {
    let (before, rest) = template.split_once('«').expect("where the model stands");
    let (model, after) = rest.split_once('»').expect("where the model ends");
    let quoted = Value::from(served_model).to_string();
    let written = match model {
        "" => format!(r#""model":{quoted},"#),
        _ if serde_json::from_str::<Value>(model).is_ok_and(|m| m == served_model) => model.to_owned(),
        _ => quoted,
    };
    (format!("{before}{model}{after}"), format!("{before}{written}{after}"))
}

/// The whole way of a request that is served: choice, rewritten body, answer byte for byte, response headers.
pub(crate) async fn is_served(gateway: &Gateway, row: &Served, rung: &str) {
    let (name, path, template, pool) = row;
    let (sent, _) = bodies(template, "");
    let plain = Request::post(path, sent).header("x-request-id", "the-request");
    // Chunks that cut fields, names and characters.
    for request in [plain.clone(), plain.chunked(7)] {
        let reply = gateway.send(&request).await.ok();
        let (instance, received) = reply.arrival();
        let serving = gateway.pool_of(*instance);
        assert!(pool.is_none_or(|p| p == serving.name), "{name}: served by {}", serving.name);
        let (_, expected) = bodies(template, &serving.served_model);
        assert_eq!(String::from_utf8_lossy(&received.body), expected, "{name}: the body that arrives");
        // A buffer filter knows how long the body is.
        match request.chunk.filter(|_| !gateway.config().envoy.headers_go_on) {
            None => assert_eq!(received.header("content-length"), Some(expected.len().to_string().as_str()), "{name}"),
            Some(_) => assert_eq!(received.header("transfer-encoding"), Some("chunked"), "{name}"),
        }
        names_its_choice(gateway, &reply, rung);
        let decisions = format!("decisions.{}.{rung}", serving.name);
        assert!(gateway.stat(&decisions).await > 0, "{name}: {decisions} counts it");
        let straight = [("x-request-id", "the-request")];
        let mut connection = gateway.connect_to(*instance).await;
        http::send(&mut connection, "POST", path, &straight, expected.as_bytes()).await;
        let direct = http::receive(&mut connection).await;
        assert_eq!(masked(reply.answer.text()), masked(direct.text()), "{name}: the answer is the instance's own");
        let content_type = direct.headers.iter().find(|(n, _)| n == "content-type").map(|(_, v)| v.as_str());
        assert_eq!(reply.header("content-type"), content_type, "{name}");
    }
}

/// The response headers tell who has served, and what they must not tell they do not.
pub(crate) fn names_its_choice(gateway: &Gateway, reply: &Reply, rung: &str) {
    let (instance, _) = reply.arrival();
    let pool = gateway.pool_of(*instance);
    let fleet = &gateway.config().fleet;
    assert_eq!(reply.header("x-routebalance-pool"), Some(pool.name.as_str()));
    assert_eq!(reply.header("x-routebalance-model"), fleet.model_of(pool).map(|m| m.name.as_str()));
    assert_eq!(reply.header("x-routebalance-rung"), Some(rung));
    assert!(reply.header("x-routebalance-decision-us").is_some_and(|us| us.parse::<u64>().is_ok()), "{reply:?}");
    let shown = gateway.config().expose_endpoint.then_some(fleet.instances[instance.index()].address.as_str());
    assert_eq!(reply.header("x-routebalance-endpoint"), shown);
}

/// Ids and times are the instance's: runs of ten or more hexadecimal digits, and what follows their decimal point.
fn masked(text: &str) -> String {
    let mut masked = String::with_capacity(text.len());
    let mut run = String::new();
    for c in text.chars().chain(['\0']) {
        if c.is_ascii_hexdigit() || (c == '.' && run.len() >= 10) {
            run.push(c);
            continue;
        }
        masked.push_str(if run.len() >= 10 { "#" } else { &run });
        run.clear();
        masked.push(c);
    }
    masked
}

/// The gateway itself answers, in the API's shape, and no instance hears of it.
pub(crate) async fn is_refused(gateway: &Gateway, row: &Refused) {
    let (name, path, body, status, shape, part) = row;
    let requests = [Request::post(path, *body), Request::post(path, *body).chunked(5)];
    for request in requests {
        let reply = gateway.send(&request).await;
        assert!(reply.arrivals.is_empty(), "{name}: {reply:?}");
        has_error_shape(&reply, *status, *shape, part);
    }
}

pub(crate) fn has_error_shape(reply: &Reply, status: u16, shape: Shape, part: &str) {
    assert_eq!(reply.status, status, "{reply:?}");
    assert_eq!(reply.header("content-type"), Some("application/json"));
    let body = reply.json();
    let error = &body["error"];
    match shape {
        Shape::OpenAi => {
            assert_eq!(error["code"], status, "{body}");
            let param = if error["message"].as_str().is_some_and(|m| m.ends_with("does not exist.")) {
                "model".into()
            } else {
                Value::Null
            };
            assert!(error["param"] == param && body.get("type").is_none(), "{body}");
        }
        Shape::Anthropic => assert!(body["type"] == "error" && error.get("code").is_none(), "{body}"),
    }
    assert!(error["type"].as_str().is_some_and(|kind| !kind.is_empty()), "{body}");
    let message = error["message"].as_str().unwrap_or_default();
    assert!(!message.is_empty() && message.contains(part), "{part:?} in {message:?}");
}

/// The default pool gets the request as it was sent; a client's control headers choose nothing and reach nobody.
pub(crate) async fn is_passed(gateway: &Gateway, row: &Passed) {
    let (_, method, path, headers, body) = row;
    let request = Request { method, ..Request::post(path, *body) };
    let request = headers.iter().fold(request, |request, (name, value)| request.header(name, value));
    let reply = gateway.send(&spoofed(request, gateway)).await;
    served_by_default_pool(gateway, &reply, body);
}

pub(crate) fn served_by_default_pool(gateway: &Gateway, reply: &Reply, body: &str) {
    let (instance, received) = reply.arrival();
    let default = &gateway.config().fleet.pools[gateway.config().envoy.default_pool.index()];
    assert_eq!(gateway.pool_of(*instance).name, default.name);
    assert_eq!(String::from_utf8_lossy(&received.body), body);
    for control in ["x-routebalance-cluster", "x-gateway-destination-endpoint"] {
        assert_eq!(received.header(control), None);
    }
    assert_eq!(reply.header("x-routebalance-model"), None);
}
