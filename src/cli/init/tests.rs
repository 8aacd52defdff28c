use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use tokio::net::TcpListener;

use super::*;

/// What a server answers to a path, given the key that it was sent.
type Answering = fn(&str, Option<&str>) -> Response;

const LIST: &str =
    r#"{"object":"list","data":[{"id":"hub/m-7b","root":"hub/m-7b","parent":null,"max_model_len":4096}]}"#;
const PAGE: &str = "vllm:num_requests_running{engine=\"0\"} 0.0\nvllm:num_requests_waiting{engine=\"0\"} 0.0\n\
                    vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"1000\"} 1.0\n";

fn vllm(path: &str, _: Option<&str>) -> Response {
    match path {
        "/v1/models" => LIST.into_response(),
        "/metrics" => PAGE.into_response(),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn serve(answering: Answering) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = move |request: Request| async move {
        let key = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        answering(request.uri().path(), key)
    };
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
    address
}

fn arguments(urls: &[String], output: &Path) -> InitArgs {
    InitArgs {
        urls: urls.to_vec(),
        output: output.to_owned(),
        force: false,
        measure: false,
        api_key_file: None,
        timeout_ms: 20_000,
    }
}

#[tokio::test]
async fn strangers_are_left_out_in_a_sentence_each() {
    let rows: [(Answering, &str); 9] = [
        (|_, _| StatusCode::UNAUTHORIZED.into_response(), "with status 401: give its key with --api-key-file"),
        (|_, _| StatusCode::NOT_FOUND.into_response(), "has no /v1/models (404)"),
        (|_, _| StatusCode::BAD_GATEWAY.into_response(), "with status 502"),
        (|_, _| Redirect::temporary("/login").into_response(), "with status 307"),
        (|_, _| "<!doctype html><title>Log in</title>".into_response(), "page for people"),
        (|_, _| "hello".into_response(), "no JSON"),
        (|_, _| "{}".into_response(), "no list"),
        (|_, _| r#"{"object":"list","data":[]}"#.into_response(), "serves no model"),
        (|_, _| vec![b' '; (16 << 20) + 1].into_response(), "more than 16 MiB"),
    ];
    let usable = serve(vllm).await;
    let file = Path::new("unused");
    for (answering, part) in rows {
        let stranger = serve(answering).await;
        let mut remarks = Vec::new();
        let alone = draw(&arguments(&[stranger.to_string()], file), &mut remarks).await;
        assert!(alone.unwrap_err().to_string().contains("none of the servers"), "{part}");
        assert_eq!(remarks.len(), 1, "{remarks:?}");
        assert!(remarks[0].starts_with(&stranger.to_string()) && remarks[0].contains(part), "{remarks:?}");
        // Beside one that can be used, it is only left out.
        let mut remarks = Vec::new();
        let both = [stranger, usable].map(|address| format!("http://{address}/v1"));
        let json = draw(&arguments(&both, file), &mut remarks).await.unwrap();
        let config = Config::parse(json.as_bytes()).unwrap();
        assert_eq!(config.fleet.instances.iter().map(|i| i.address.as_str()).collect::<Vec<_>>(), [usable.to_string()]);
        assert!(remarks.iter().any(|remark| remark.contains(part)), "{remarks:?}");
    }
}

#[test]
fn sentences_command_no_terminal() {
    assert_eq!(printable("a \u{1b}[2Jü\n"), "a \u{fffd}[2Jü\u{fffd}");
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_left_out() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let other_address = other.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = other.accept().await {
            let _ = tokio::io::AsyncWriteExt::write_all(&mut connection, b"SSH-2.0-OpenSSH_9.6\r\n").await;
        }
    });
    for (address, timeout_ms, part) in [
        (silent.local_addr().unwrap(), 100, "does not answer /v1/models within 100 ms"),
        (gone, 20_000, "takes no connection"),
        (other_address, 20_000, "answers no HTTP"),
    ] {
        let args = InitArgs { timeout_ms, ..arguments(&[address.to_string()], Path::new("unused")) };
        let mut remarks = Vec::new();
        draw(&args, &mut remarks).await.unwrap_err();
        assert!(remarks.len() == 1 && remarks[0].contains(part), "{remarks:?}");
    }
}

#[tokio::test]
async fn what_is_no_vllm_has_default_limits() {
    let rows: [(Answering, &str); 2] = [
        (
            |path, _| match path {
                "/v1/models" => r#"{"data":[{"id":"qwen2.5:7b"},{"id":"gemma3:4b"}]}"#.into_response(),
                _ => StatusCode::NOT_FOUND.into_response(),
            },
            "has no /metrics (404)",
        ),
        (
            |path, _| match path {
                "/v1/models" => r#"{"data":[{"id":"qwen2.5:7b"},{"id":"gemma3:4b"}]}"#.into_response(),
                _ => "python_info 1\n".into_response(),
            },
            "has a page /metrics of no server that is known",
        ),
    ];
    for (answering, part) in rows {
        let address = serve(answering).await;
        let mut remarks = Vec::new();
        let json = draw(&arguments(&[address.to_string()], Path::new("unused")), &mut remarks).await.unwrap();
        let config = Config::parse(json.as_bytes()).unwrap();
        assert_eq!(config.fleet.models[0].name, "qwen2.5:7b");
        assert!(remarks.iter().any(|remark| remark.contains(part)), "{remarks:?}");
        assert!(remarks.iter().any(|remark| remark.contains("gemma3:4b is left out")), "{remarks:?}");
        let limits = unknown_limits(&config, &json);
        assert!(limits[0].ends_with("max_running = 256, kv_tokens = 76000, max_model_len = 8192"), "{limits:?}");
    }
}

/// With several engines, vLLM shows no load before its first request.
#[tokio::test]
async fn a_fresh_vllm_is_known_by_its_cache() {
    let address = serve(|path, key| match path {
        "/metrics" => PAGE.lines().next_back().unwrap_or_default().into_response(),
        _ => vllm(path, key),
    })
    .await;
    let mut remarks = Vec::new();
    draw(&arguments(&[address.to_string()], Path::new("unused")), &mut remarks).await.unwrap();
    assert!(remarks.iter().all(|remark| !remark.contains("/metrics")), "{remarks:?}");
}

#[tokio::test]
async fn the_key_goes_with_every_request() {
    let address = serve(|path, key| match key {
        Some("Bearer sk-1") => vllm(path, key),
        _ => StatusCode::UNAUTHORIZED.into_response(),
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    for (key, problem) in [("sk-1\n", None), ("sk-2\n", Some("refuses the key of --api-key-file"))] {
        std::fs::write(&file, key).unwrap();
        let args = InitArgs { api_key_file: Some(file.clone()), ..arguments(&[address.to_string()], &file) };
        let mut remarks = Vec::new();
        let drawn = draw(&args, &mut remarks).await;
        assert_eq!(drawn.is_ok(), problem.is_none());
        assert!(problem.is_none_or(|part| remarks[0].contains(part)), "{remarks:?}");
    }
}

#[tokio::test]
async fn a_file_that_is_there_stays() {
    let urls = [serve(vllm).await.to_string()];
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("routebalance.json");
    run(&arguments(&urls, &file)).await.unwrap();
    let first = std::fs::read_to_string(&file).unwrap();
    let limits = check::check(&file).unwrap().fleet.pools[0].limits;
    assert_eq!((limits.kv_tokens, limits.max_model_len), (16_000, 4_096));
    std::fs::write(&file, "mine").unwrap();
    for (force, kept) in [(false, "mine"), (true, first.as_str())] {
        let args = InitArgs { force, ..arguments(&urls, &file) };
        assert_eq!(run(&args).await.is_ok(), force);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), kept);
    }
    // It may have come meanwhile.
    assert!(write(&file, "other", false).unwrap_err().to_string().contains("is there"));
    assert!(
        write(&folder.path().join("none/file"), "other", true).unwrap_err().to_string().contains("cannot be written")
    );
    assert_eq!(std::fs::read_to_string(&file).unwrap(), first);
}

/// A stranger's chat: takes only the fields that it is told, and answers in one piece.
async fn chat_server(refused: &'static [&'static str], status: StatusCode) -> (SocketAddr, Arc<Mutex<usize>>) {
    let requests = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&requests);
    let answer = move |request: Request| async move {
        if request.uri().path() == "/v1/models" {
            return LIST.into_response();
        }
        if request.uri().path() != "/v1/chat/completions" {
            return StatusCode::NOT_FOUND.into_response();
        }
        *counted.lock().unwrap() += 1;
        let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        if let Some(field) = refused.iter().find(|field| body.get(**field).is_some()) {
            return (status, format!("unknown field {field}")).into_response();
        }
        let usage = r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":6}}"#;
        let token = r#"{"choices":[{"delta":{"content":"hi"}}]}"#;
        let events = [token, token, token, token, token, token, usage, "[DONE]"];
        events.map(|event| format!("data: {event}\n\n")).concat().into_response()
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
    (address, requests)
}

#[tokio::test]
async fn a_server_that_cannot_be_measured_is_guessed() {
    // Five short prompts, five long ones, two rounds of eight; and one request for each dialect.
    const ANSWERED: usize = 26;
    for (refused, status, requests, part) in [
        (&[][..], StatusCode::OK, ANSWERED + 1, "in one piece"),
        (&["ignore_eos"], StatusCode::BAD_REQUEST, ANSWERED + 2, "in one piece"),
        (&["ignore_eos", "stream_options"], StatusCode::UNPROCESSABLE_ENTITY, ANSWERED + 3, "in one piece"),
        (&["messages"], StatusCode::BAD_REQUEST, 3, "refuses a chat request with status 400: unknown field messages"),
        (&["messages"], StatusCode::SERVICE_UNAVAILABLE, 1, "refuses a chat request with status 503"),
    ] {
        let (address, counted) = chat_server(refused, status).await;
        let args = InitArgs { measure: true, ..arguments(&[address.to_string()], Path::new("unused")) };
        let mut remarks = Vec::new();
        let json = draw(&args, &mut remarks).await.unwrap();
        assert_eq!(*counted.lock().unwrap(), requests, "{refused:?}");
        assert!(remarks.iter().any(|remark| remark.contains(part)), "{remarks:?}");
        assert!(remarks.iter().any(|remark| remark.contains("could not be measured")), "{remarks:?}");
        assert!(json.contains("guessed from the reference fleet's models of about 7B"), "{json}");
    }
}
