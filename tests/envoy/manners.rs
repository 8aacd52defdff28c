//! The gateway's own limits and manners: what is packed, too large, too slow, spelt oddly, or asked of another path.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use crate::harness::{Gateway, Reply, Request, eventually};
use crate::http;
use crate::scenarios::{Shape, has_error_shape};
use crate::setups::{BODY_LIMIT, REQUEST_TIMEOUT};

const MODEL: &str = "Qwen2.5-32B-Instruct";

/// A chat with this model in gzip, brotli and zstd.
const PACKED: [(&str, &str); 2] = [
    (
        "br",
        "1b6c00e08cd462cd19ee1c2173ba21db4a955dc7a4592392c4e5a55874747202fedbb77f2b0c2cd548aa83a740a2f6885e30fc02f811d65d4e1c25923c6790e6140d0f4076d0ff222d846b007e41d8cd4b6c1b7aef5fa2592afe615de9131f735f4ea0fc01",
    ),
    (
        "zstd",
        "28b52ffd206d1d0300d2c6171c606d738d4e27a231125abe2ed53b9d1933b082187ea7bb991245411cd100ad79a7ed22b2302b4564c2df62a4c7d1f466933ed2d3208cdefc6663acecaecfe8afe60c25d07ac7a27a66e5659e5b4d435250028900a0e42107a3d71b8d190a00",
    ),
];

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex")).collect()
}

fn gzip(body: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packer.write_all(body).expect("memory");
    packer.finish().expect("memory")
}

fn pool<'a>(gateway: &'a Gateway, reply: &Reply) -> &'a str {
    &gateway.pool_of(reply.arrival().0).name
}

fn arrived(reply: &Reply) -> Value {
    serde_json::from_slice(&reply.arrival().1.body).expect("JSON")
}

fn post(path: &str, body: &Value) -> Request {
    Request::post(path, body.to_string())
}

fn chat(path: &str, fields: &Value) -> Request {
    let mut body = json!({"model": MODEL, "messages": [{"role": "user", "content": "Why is the sky blue?"}]});
    for (name, value) in fields.as_object().expect("fields") {
        body[name] = value.clone();
    }
    post(&format!("{path}/v1/chat/completions"), &body)
}

/// Packed requests are decided like others, also where there are limits.
pub(crate) async fn packed_bodies(gateway: &Gateway) {
    let packed = |path: &str, encoding: &str, body: Vec<u8>| {
        Request::post(&format!("{path}/v1/chat/completions"), body).header("content-encoding", encoding)
    };
    let plain = chat("", &json!({"max_tokens": 8})).body;
    for path in ["", "/cost"] {
        let mut rows = PACKED.map(|(encoding, body)| packed(path, encoding, hex(body))).to_vec();
        rows.push(packed(path, "gzip", gzip(&plain)));
        rows.push(packed(path, "GZIP", gzip(&plain)).chunked(9));
        for request in rows {
            let reply = gateway.send(&request).await.ok();
            assert_eq!((pool(gateway, &reply), arrived(&reply)["max_tokens"].as_u64()), ("qwen2.5-32b", Some(8)));
            assert_eq!(reply.arrival().1.header("content-encoding"), None);
        }
    }
    let wrong = [
        (packed("", "gzip", plain.clone()), 400),
        (packed("", "gzip", gzip(&plain)[..40].to_vec()), 400),
        (packed("", "gzip, gzip", gzip(&gzip(&plain))), 415),
        (packed("", "br, gzip", plain.clone()), 415),
    ];
    for (request, status) in wrong {
        let reply = gateway.send(&request).await;
        has_error_shape(&reply, status, Shape::OpenAi, "");
        assert!(reply.arrivals.is_empty());
    }
}

/// A small body that unpacks to a quarter of a gigabyte costs next to no memory, wherever it names its model.
pub(crate) async fn bombs(gateway: &Gateway) {
    let blanks = vec![b' '; 256 << 20];
    let first = gzip(
        &[br#"{"model":"Qwen2.5-32B-Instruct","messages":[{"role":"user","content":""#.as_slice(), &blanks].concat(),
    );
    let last = gzip(&[br#"{"messages":[{"role":"user","content":""#.as_slice(), &blanks].concat());
    drop(blanks);
    let before = gateway.envoy().resident_bytes().expect("memory");
    for body in [first, last] {
        for path in ["", "/cost"] {
            let request =
                Request::post(&format!("{path}/v1/messages"), body.clone()).header("content-encoding", "gzip");
            let reply = gateway.send(&request).await;
            has_error_shape(&reply, 413, Shape::Anthropic, "unpacks");
            assert!(reply.arrivals.is_empty());
        }
    }
    let grown = gateway.envoy().resident_bytes().expect("memory").saturating_sub(before);
    assert!(grown < 128 << 20, "{} MB more", grown >> 20);
}

/// A client that sends all of its body before it reads gets its answer, and the connection goes on.
pub(crate) async fn refused_while_sending(gateway: &Gateway) {
    let text = "a".repeat(8 << 20);
    let rows = [
        (format!(r#"{{"messages":[{{"role":"user","content":"{text}"}}],"model":"auto"}}"#), 413),
        (format!(r#"{{"model":"nope","messages":[{{"role":"user","content":"{text}"}}]}}"#), 404),
    ];
    for (body, status) in rows {
        for chunk in [None, Some(100_000)] {
            let mut tcp = gateway.connect().await;
            let request = Request { chunk, ..Request::post("/v1/chat/completions", body.clone()) };
            request.write(&mut tcp).await;
            let reply = gateway.reply(http::receive(&mut tcp).await, "none");
            has_error_shape(&reply, status, Shape::OpenAi, "");
            let (next, id) = gateway.mark(&Request::chat(MODEL));
            next.write(&mut tcp).await;
            gateway.reply(http::receive(&mut tcp).await, &id).ok();
        }
    }
    // Refused by its headers.
    let mut tcp = gateway.connect().await;
    let body = chat("", &json!({"user": text})).body;
    let request = Request::post("/cost/v1/chat/completions", body).header("content-encoding", "x-ours");
    request.write(&mut tcp).await;
    has_error_shape(&gateway.reply(http::receive(&mut tcp).await, "none"), 415, Shape::OpenAi, "");
}

/// A body that never ends is ended, and its client is told; an answer may take longer than a request.
pub(crate) async fn slow_bodies(gateway: &Gateway) {
    let head = |path: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\ncontent-length: 900000\r\n\r\n"
        )
    };
    for (path, shape) in
        [("/v1/chat/completions", Shape::OpenAi), ("/v1/messages", Shape::Anthropic), ("/v1/files", Shape::OpenAi)]
    {
        let mut tcp = gateway.connect().await;
        let began = Instant::now();
        tcp.write_all(head(path).as_bytes()).await.expect("the head");
        tcp.write_all(br#"{"model":"auto","messages":[{"role":"user","content":""#).await.expect("a beginning");
        let reply = gateway.reply(http::receive(&mut tcp).await, "none");
        has_error_shape(&reply, 408, shape, "in time");
        assert!(began.elapsed() >= REQUEST_TIMEOUT - Duration::from_millis(100), "{:?}", began.elapsed());
    }
    let began = Instant::now();
    let long = json!({"max_tokens": 1_500, "ignore_eos": true});
    gateway.send(&chat("", &long)).await.ok();
    assert!(began.elapsed() > REQUEST_TIMEOUT, "the answer takes longer: {:?}", began.elapsed());
}

/// A body beyond what is read whole passes where nothing limits it, and is refused where something does.
pub(crate) async fn beyond_what_is_read(gateway: &Gateway) {
    let text = "a".repeat(BODY_LIMIT);
    let body = json!({"model": MODEL, "max_tokens": 4, "messages": [{"role": "user", "content": text}], "n": 1});
    // The order in which a client may write it, so that limits come after what is read.
    let body = format!(r#"{{"model":"{MODEL}",{}"#, &body.to_string()[1..]);
    let request_at = |path: &str| Request::post(&format!("{path}/v1/chat/completions"), body.clone());
    let reply = gateway.send(&request_at("")).await;
    assert_eq!((pool(gateway, &reply), reply.arrival().1.body.len()), ("qwen2.5-32b", body.len() + "Qwen/".len()));
    has_error_shape(&gateway.send(&request_at("/cost")).await, 413, Shape::OpenAi, "limits");
    let trusted = request_at("/quality").header("x-routebalance-budget-tokens", "9");
    has_error_shape(&gateway.send(&trusted).await, 413, Shape::OpenAi, "limits");
}

/// Numbers as clients spell them, on a route whose budget is 500 tokens; what the instance gets.
pub(crate) async fn spelt_limits(gateway: &Gateway) {
    let long = "word ".repeat(4_000);
    let rows = [
        (json!({"max_tokens": "5_000"}), json!({"max_tokens": 500})),
        (
            json!({"max_completion_tokens": "5_000", "max_tokens": 5}),
            json!({"max_completion_tokens": 500, "max_tokens": 500}),
        ),
        (json!({"max_tokens": format!("{}5000", "0".repeat(300))}), json!({"max_tokens": 500})),
        (
            json!({"max_completion_tokens": 0, "max_tokens": 5_000}),
            json!({"max_completion_tokens": 500, "max_tokens": 500}),
        ),
        (
            json!({"max_completion_tokens": null, "max_tokens": 50}),
            json!({"max_completion_tokens": 50, "max_tokens": 50}),
        ),
        (json!({"max_tokens": 50}), json!({"max_tokens": 50})),
        (json!({"max_tokens": 50.0}), json!({"max_tokens": 50})),
        (json!({"n": "1_0", "max_tokens": 100}), json!({"n": "1_0", "max_tokens": 50})),
        (json!({"best_of": 10, "max_tokens": 100}), json!({"best_of": 10, "max_tokens": 50})),
        (json!({"messages": [{"role": "user", "content": long}]}), json!({"max_tokens": 500})),
    ];
    for (asked, expected) in rows {
        // Emulated instances know fewer spellings than pydantic does.
        let reply = gateway.send(&chat("/cost", &asked)).await;
        let arrived = arrived(&reply);
        for (name, value) in expected.as_object().expect("fields") {
            assert_eq!(&arrived[name], value, "{name}: {:.200}", asked.to_string());
        }
    }
    // An API that says itself how long an answer is.
    let completion = json!({"model": MODEL, "prompt": "Once upon a time"});
    assert_eq!(arrived(&gateway.send(&post("/cost/v1/completions", &completion)).await.ok())["max_tokens"], 16);
    let refused = [
        (json!({"n": 501}), "min_tokens"),
        (json!({"n": format!("{}16", "0".repeat(300))}), "body"),
        (json!({"min_tokens": 501}), "min_tokens"),
        (json!({"min_tokens": "50_1", "max_tokens": 5_000}), "min_tokens"),
        (json!({"min_tokens": 20, "max_tokens": 10}), "min_tokens"),
    ];
    for (asked, reason) in refused {
        let reply = gateway.send(&chat("/cost", &asked)).await;
        has_error_shape(&reply, 400, Shape::OpenAi, "");
        assert_eq!(reply.header("x-routebalance-refused-reason"), Some(reason), "{reply:?}");
    }
    let strict = chat("/quality", &json!({"min_tokens": 20}))
        .header("x-routebalance-budget-tokens", "10")
        .header("x-routebalance-mode", "strict");
    has_error_shape(&gateway.send(&strict).await, 429, Shape::OpenAi, "budget");
}

/// A gateway in front adds its own limit to the client's: nobody knows which one is whose.
pub(crate) async fn headers_twice(gateway: &Gateway) {
    for (name, first, second) in [
        ("x-routebalance-budget-tokens", "90", "10"),
        ("x-routebalance-budget-usd", "1", "1"),
        ("x-routebalance-quality-min", "0", "0.9"),
        ("x-routebalance-mode", "relaxed", "strict"),
        ("x-routebalance-relax-order", "budget", "ttft"),
        ("x-llm-d-slo-ttft-ms", "1", "1"),
    ] {
        let request = chat("/quality", &json!({})).header(name, first).header(&name.to_uppercase(), second);
        has_error_shape(&gateway.send(&request).await, 400, Shape::OpenAi, name);
        // Where none is read, none counts.
        gateway.send(&chat("", &json!({"max_tokens": 3})).header(name, first).header(name, second)).await.ok();
    }
    let other = Request { path: "/quality/invocations".to_owned(), ..chat("", &json!({})) };
    let limited = other.clone().header("x-routebalance-budget-tokens", "9");
    has_error_shape(&gateway.send(&limited).await, 403, Shape::OpenAi, "limits");
    assert_eq!(gateway.send(&other).await.header("x-routebalance-refused-reason"), None, "no limit would be lost");
}

/// Text in whatever field counts as text does.
pub(crate) async fn text_in_other_fields(gateway: &Gateway) {
    let text = "lorem ipsum dolor ".repeat(300);
    let estimate = async |id: &str, path: &str, body: Value| {
        gateway.send(&post(path, &body).header("x-request-id", id)).await;
        let logged = async || {
            let log = gateway.access_log();
            let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            lines.into_iter().find(|line| line["request_id"] == id).map(|line| line["decision"].clone())
        };
        let decision = eventually("the log", logged, Option::is_some).await.expect("a decision");
        decision["estimated_prompt_tokens"].as_f64().expect("tokens")
    };
    let chat = |message: Value| json!({"model": MODEL, "max_tokens": 2, "messages": [{"role": "user", "content": "go"}, message]});
    let control =
        estimate("control", "/v1/chat/completions", chat(json!({"role": "assistant", "content": text}))).await;
    let rows = [
        (
            "reasoning",
            "/v1/chat/completions",
            chat(json!({"role": "assistant", "content": "", "reasoning_content": text})),
        ),
        (
            "thinking",
            "/v1/messages",
            chat(json!({"role": "assistant", "content": [{"type": "thinking", "thinking": text, "signature": "x"}]})),
        ),
        (
            "document",
            "/v1/messages",
            chat(
                json!({"role": "user", "content": [{"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": text}}]}),
            ),
        ),
        (
            "summary",
            "/v1/responses",
            json!({"model": MODEL, "max_output_tokens": 2, "input": [{"role": "user", "content": "go"}, {"type": "reasoning", "summary": [{"type": "summary_text", "text": text}]}]}),
        ),
    ];
    for (id, path, body) in rows {
        let seen = estimate(id, path, body).await;
        assert!((seen / control - 1.0).abs() < 0.1, "{id}: {seen}, and {control} as content");
    }
    let picture = format!("data:image/png;base64,{}", "AbC9".repeat(5_000));
    let image = json!({"role": "user", "content": [{"type": "image_url", "image_url": {"url": picture}}]});
    let seen = estimate("image", "/v1/chat/completions", chat(image)).await;
    assert!((1_000.0..1_100.0).contains(&seen), "an image is 1,024 tokens: {seen}");
}

/// Calls that only name a model go to an instance of it, whatever the API is called.
pub(crate) async fn calls_that_name_a_model(gateway: &Gateway) {
    let form = "--B\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\nRIFF\r\n--B\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\nMODEL\r\n--B--\r\n";
    let of_form = |path: &str, model: &str| {
        Request::post(path, form.replace("MODEL", model)).header("content-type", "multipart/form-data; boundary=B")
    };
    let embed = "bge-small-en-v1.5";
    let rows = [
        (post("/tokenize", &json!({"model": MODEL, "prompt": "a b"})), "qwen2.5-32b", "/tokenize"),
        (post("/v1/tokenize?x=1", &json!({"model": MODEL, "prompt": "a b"})), "qwen2.5-32b", "/v1/tokenize"),
        (post("/detokenize", &json!({"tokens": [1, 2], "model": MODEL})), "qwen2.5-32b", "/detokenize"),
        (post("/v1/rerank", &json!({"model": embed, "query": "a", "documents": ["b"]})), "bge-small", "/v1/rerank"),
        (post("/score", &json!({"model": embed, "text_1": "a", "text_2": "b"})), "bge-small", "/score"),
        (post("/score", &json!({"model": "auto", "text_1": "a", "text_2": "b"})), "bge-small", "/score"),
        (post("/invocations", &json!({"model": MODEL, "messages": []})), "qwen2.5-32b", "/invocations"),
        (of_form("/v1/audio/transcriptions", MODEL), "qwen2.5-32b", "/v1/audio/transcriptions"),
        (
            post(
                &format!("/openai/deployments/{MODEL}/chat/completions?api-version=1"),
                &json!({"messages": [{"role": "user", "content": "Hi"}]}),
            ),
            "qwen2.5-32b",
            "/v1/chat/completions",
        ),
        (
            post(&format!("/cost/openai/deployments/{embed}/embeddings"), &json!({"input": "a", "model": MODEL})),
            "bge-small",
            "/v1/embeddings",
        ),
    ];
    for (request, expected, path) in rows {
        let reply = gateway.send(&request).await;
        assert_eq!((pool(gateway, &reply), reply.arrival().1.path.as_str()), (expected, path), "{request:?}");
        let body = String::from_utf8_lossy(&reply.arrival().1.body).into_owned();
        assert!(body.contains(&gateway.pool(expected).served_model), "{body}");
    }
    let auto = gateway.send(&post("/tokenize", &json!({"model": "auto", "prompt": "a b"}))).await;
    assert_ne!(arrived(&auto)["model"], "auto", "an instance knows its own name only");
    let deployed = gateway.send(&post("/openai/deployments/nope/chat/completions", &json!({"messages": [{}]}))).await;
    has_error_shape(&deployed, 404, Shape::OpenAi, "nope");
    let limited = gateway.send(&of_form("/cost/v1/audio/transcriptions", MODEL)).await;
    has_error_shape(&limited, 403, Shape::OpenAi, "limits");
}

/// Everything below a stored response goes to the instance that has it.
pub(crate) async fn below_a_response(gateway: &Gateway) {
    let made = gateway.send(&post("/v1/responses", &json!({"model": "auto", "input": "Name a sea."}))).await.ok();
    let (holder, id) = (made.arrival().0, made.json()["id"].as_str().expect("an id").to_owned());
    tokio::time::sleep(Duration::from_millis(200)).await;
    for (method, below) in
        [("GET", ""), ("GET", "/input_items?limit=2"), ("POST", "/cancel"), ("POST", "/x/y"), ("DELETE", "")]
    {
        let request = Request { method, ..Request::post(&format!("/v1/responses/{id}{below}"), "{}") };
        assert_eq!(gateway.send(&request).await.arrival().0, holder, "{method} {below}");
    }
}

/// Every shape of input that servers embed reaches one.
pub(crate) async fn inputs_to_embed(gateway: &Gateway) {
    for input in [
        json!("a sea"),
        json!(""),
        json!([""]),
        json!([1, 2, 3]),
        json!([[1], [2, 3]]),
        json!({"content": [{"type": "text", "text": "a"}]}),
        json!([{"text": "a"}, {"text": "b", "image": "http://x/y.png"}]),
    ] {
        let reply = gateway.send(&post("/v1/embeddings", &json!({"model": "bge-small-en-v1.5", "input": input}))).await;
        assert_eq!(pool(gateway, &reply), "bge-small", "{input}");
        assert_eq!(arrived(&reply)["input"], input);
    }
}

/// Envoy's own errors on paths that the filter does not read.
pub(crate) async fn errors_of_envoy(gateway: &Gateway) {
    let default = gateway.config().fleet.pools[gateway.config().envoy.default_pool.index()].name.clone();
    gateway.fault_pool(&default, routebalance_instance::Fault::Refuse).await;
    for (method, path) in [("POST", "/v1/files"), ("GET", "/version"), ("POST", "/v1/audio/speech")] {
        let request = Request { method, ..Request::post(path, "{}") };
        let reply = gateway.send(&request.header("origin", "http://ui.example")).await;
        has_error_shape(&reply, 503, Shape::OpenAi, "No instance");
        assert_eq!(reply.header("access-control-allow-origin"), Some("*"));
    }
}
