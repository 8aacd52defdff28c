//! What becomes of requests whose favourite model is gone.

use routebalance_instance::Fault;

use super::server::{Act, Page, Strangers};
use super::{
    CHAT, POOLS, SMALL_MODEL, SMALL_POOL, are_well, failures, favourite, for_quality, instances, log_line, messages,
    model_of, watched,
};
use crate::harness::{Gateway, Reply, Request};
use crate::scenarios::{Shape, has_error_shape, names_its_choice};

/// A request that names its model waits for it, and says when to come again.
pub(crate) async fn nobody_listens(gateway: &Gateway) {
    are_well(gateway, &[SMALL_POOL]).await;
    gateway.fault_pool(SMALL_POOL, Fault::Refuse).await;
    for (request, shape) in [(Request::chat(SMALL_MODEL), Shape::OpenAi), (messages(SMALL_MODEL), Shape::Anthropic)] {
        let reply = gateway.send(&request).await;
        has_error_shape(&reply, 503, shape, "");
        let seconds = reply.header("retry-after").and_then(|seconds| seconds.parse::<u64>().ok());
        assert!(seconds.is_some_and(|seconds| seconds > 0), "{reply:?}");
        assert!(reply.arrivals.is_empty(), "no other model may answer: {reply:?}");
    }
}

/// How a request that leaves the model to the gateway may be sent.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sent {
    Whole,
    AsStream,
    ToMessages,
    InChunks,
    /// With more than Envoy reads at once.
    Large,
    LargeInChunks,
}

fn for_any_model(sent: Sent) -> Request {
    let ask = r#""messages":[{"role":"user","content":"Why is the sky blue?"}],"max_tokens":8"#;
    let bulk = "0123456 ".repeat(300 << 7);
    let chat = |fields: &str| Request::post(CHAT, format!("{{{fields}}}"));
    let any = r#""model":"auto""#;
    match sent {
        Sent::Whole => chat(&format!("{any},{ask}")),
        Sent::AsStream => chat(&format!("{ask},\"stream\":true,{any}")),
        Sent::ToMessages => messages("auto"),
        Sent::InChunks => chat(&format!("{any},{ask}")).chunked(7),
        Sent::Large => chat(&format!("{ask},\"user\":\"{bulk}\",{any}")),
        Sent::LargeInChunks => chat(&format!("{any},{ask},\"user\":\"{bulk}\"")).chunked(50_000),
    }
}

/// Another model than the favourite has served a request: it was asked for by the name that it has there, and the answer and the log
/// name it.
async fn served_by_another(gateway: &Gateway, favourite: &str, request: &Request, reply: &Reply, id: &str) {
    let (instance, received) = reply.arrival();
    let serving = gateway.pool_of(*instance);
    assert_ne!(serving.name, favourite, "{id}: {reply:?}");
    names_its_choice(gateway, reply, "fused");
    let asked = format!(r#""model":"{}""#, serving.served_model);
    let expected = String::from_utf8_lossy(&request.body).replacen(r#""model":"auto""#, &asked, 1);
    assert!(received.body == expected.as_bytes(), "{id}: {} of {} bytes", received.body.len(), expected.len());
    // A buffer filter knows how long the body is.
    match request.chunk.filter(|_| !gateway.config().envoy.headers_go_on) {
        None => assert_eq!(received.header("content-length"), Some(expected.len().to_string().as_str()), "{id}"),
        Some(_) => assert_eq!(received.header("content-length"), None, "{id}"),
    }
    let line = log_line(gateway, id).await;
    assert_eq!(line["decision"]["model"], model_of(gateway, &serving.name), "{line}");
    assert_eq!(line["decision"]["pool"], serving.name, "{line}");
    assert_eq!(line["upstream"], gateway.config().fleet.instances[instance.index()].address.as_str(), "{line}");
    assert!(line["attempts"].as_u64().is_some_and(|attempts| attempts > 1), "{line}");
}

/// Nobody knows yet that the favourite is gone: the very request that finds it out is served by another model.
pub(crate) async fn favourite_is_gone(gateway: &Gateway, sent: Sent) {
    are_well(gateway, &POOLS).await;
    let favourite = favourite(gateway).await;
    let (id, request) = (format!("gone-{sent:?}"), for_any_model(sent));
    let before = gateway.stat("served_by_other_model").await;
    gateway.fault_pool(&favourite, Fault::Refuse).await;
    let reply = gateway.send(&for_quality(request.clone()).header("x-request-id", &id)).await.ok();
    let named = gateway.send(&Request::chat(&model_of(gateway, &favourite))).await;
    for instance in instances(gateway, &favourite) {
        gateway.fault(instance, Fault::None).await;
    }
    assert_eq!((named.status, named.arrivals.len()), (503, 0), "who names a model gets it or none: {named:?}");
    assert_eq!(gateway.stat("served_by_other_model").await, before + 1, "{id}: {reply:?}");
    served_by_another(gateway, &favourite, &request, &reply, &id).await;
}

/// A pool that takes requests and hangs up costs no request that leaves the model to the gateway. One that names the model is the suspect
/// after two instances: it may be what kills them. These failures are all that is counted.
pub(crate) async fn favourite_hangs_up(gateway: &Gateway) {
    are_well(gateway, &POOLS).await;
    let favourite = favourite(gateway).await;
    let all = instances(gateway, &favourite);
    let strangers = Strangers::saying(gateway, &all, Page::Vllm, Act::nothing()).await;
    let named = Request::chat(&model_of(gateway, &favourite));
    let mut expected = failures(gateway).await;
    let requests = async {
        for sent in 1..=3 {
            let reply = gateway.send(&named).await;
            // Where there is no third instance, Envoy itself gives up.
            let (status, reason) = if all.len() > 2 { (502, Some("suspect")) } else { (503, None) };
            has_error_shape(&reply, status, Shape::OpenAi, "");
            assert_eq!(reply.header("x-routebalance-refused-reason"), reason, "{reply:?}");
            assert!(reply.arrivals.is_empty(), "no other model is asked: {reply:?}");
            let posts = strangers.posts();
            assert_eq!(posts.len(), 2 * sent, "two instances are asked: {reply:?}");
            assert_ne!(posts[2 * sent - 2].instance, posts[2 * sent - 1].instance);
        }
        let request = Request::chat("auto");
        let id = "hung-up";
        let reply = gateway.send(&for_quality(request.clone()).header("x-request-id", id)).await.ok();
        assert_eq!(strangers.count(), 7, "the favourite was asked first");
        served_by_another(gateway, &favourite, &request, &reply, id).await;
    };
    let ((), ejected) = watched(gateway, &favourite, requests).await;
    *expected.entry("unanswered".to_owned()).or_default() += 7;
    assert_eq!((failures(gateway).await, ejected), (expected, 0));
    strangers.leave(gateway).await;
}
