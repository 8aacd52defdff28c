//! The endpoint-picker protocol of the Gateway API Inference Extension: a gateway says which endpoints may serve, and hears which one has.
//! The conformance tests of its data plane, restated: GatewayFollowingEPPRouting, the same with several ports of one address,
//! GatewayDestinationEndpointServed and EppUnAvailableFailOpen.

use futures::future::join_all;

use crate::harness::{Gateway, Reply, Request};
use crate::scenarios::{Shape, has_error_shape};
use routebalance_instance::Fault;

const HEADER: &str = "x-gateway-destination-endpoint-subset";
/// What a filter before ours writes into metadata.
const SELECTION: &str = "test-epp-endpoint-selection";
const SERVED: &str = "x-gateway-destination-endpoint-served";
/// The pool of a model that requests name.
const POOL: (&str, &str) = ("qwen2.5-3b", "Qwen2.5-3B-Instruct");

fn addresses(gateway: &Gateway) -> Vec<String> {
    let fleet = &gateway.config().fleet;
    let instances = gateway.pool(POOL.0).instances.iter();
    instances.map(|i| fleet.instance(*i).expect("an instance").address.clone()).collect()
}

/// On a route that trusts the header.
fn trusted(request: Request, list: &str) -> Request {
    Request { path: format!("/quality{}", request.path), ..request }.header(HEADER, list)
}

fn served(gateway: &Gateway, reply: &Reply) -> String {
    let address = gateway.config().fleet.instance(reply.arrival().0).expect("an instance").address.clone();
    assert_eq!(reply.header(SERVED), Some(address.as_str()), "{reply:?}");
    address
}

/// Each endpoint alone, then lists of one, two and three: a hundred requests each, ten at once.
async fn follows(gateway: &Gateway, hinted: impl Fn(Request, &str) -> Request) {
    let all = addresses(gateway);
    for address in &all {
        let reply = gateway.send(&hinted(Request::chat("auto"), address)).await.ok();
        assert_eq!(served(gateway, &reply), *address);
    }
    for count in 1..=3 {
        let list = &all[..count];
        for _ in 0..10 {
            let request = hinted(Request::chat("auto"), &list.join(","));
            let replies = join_all((0..10).map(|_| gateway.send(&request))).await;
            for reply in replies {
                assert!(list.contains(&served(gateway, &reply.ok())), "{list:?}");
            }
        }
    }
}

pub(crate) async fn follows_header(gateway: &Gateway) {
    follows(gateway, trusted).await;
    // In every way of writing it.
    let all = addresses(gateway);
    for list in [format!(" {} , 10.99.0.1:80", all[1]), format!("{0},{0},", all[1]), format!("[::1]:1,{}", all[1])] {
        let reply = gateway.send(&trusted(Request::chat(POOL.1), &list)).await.ok();
        assert_eq!(served(gateway, &reply), all[1], "{list}");
        assert_eq!(reply.arrival().1.header(HEADER), None, "it ends here");
    }
}

pub(crate) async fn follows_metadata(gateway: &Gateway) {
    follows(gateway, |request, list| request.header(SELECTION, list)).await;
    // A client's header changes nothing, and both count where it is trusted.
    let all = addresses(gateway);
    let both = |request: Request, list: &str| request.header(SELECTION, &all[..2].join(",")).header(HEADER, list);
    let reply = gateway.send(&both(Request::chat("auto"), &all[2])).await.ok();
    assert!(all[..2].contains(&served(gateway, &reply)));
}

/// Who has named no endpoint that can serve gets none.
pub(crate) async fn none_is_left(gateway: &Gateway) {
    let before = gateway.stat("refused_for.subset").await;
    let other =
        gateway.config().fleet.instance(gateway.pool("qwen2.5-72b").instances[0]).expect("an instance").address.clone();
    let messages =
        Request::post("/v1/messages", r#"{"model":"auto","max_tokens":9,"messages":[{"role":"user","content":"Hi"}]}"#);
    let models = Request::post("/v1/embeddings", r#"{"model":"bge-small-en-v1.5","input":"a"}"#);
    for (request, list, shape) in [
        (Request::chat("auto"), "", Shape::OpenAi),
        (Request::chat("auto"), "10.99.0.1:80", Shape::OpenAi),
        (Request::chat(POOL.1), other.as_str(), Shape::OpenAi),
        (messages, "10.99.0.1:80", Shape::Anthropic),
        (models, other.as_str(), Shape::OpenAi),
    ] {
        let reply = gateway.send(&trusted(request, list)).await;
        has_error_shape(&reply, 503, shape, "None of the endpoints");
        assert!(reply.arrivals.is_empty(), "{list}: {reply:?}");
        assert_eq!(reply.header("x-routebalance-refused-reason"), Some("subset"));
        assert_eq!(reply.header("retry-after"), Some("1"));
    }
    assert_eq!(gateway.stat("refused_for.subset").await, before + 5);
    for list in ["10.0.0.1", "vllm:8000", "10.0.0.1:99999", "10.0.0.1:80;10.0.0.2:80", "{}"] {
        let reply = gateway.send(&trusted(Request::chat("auto"), list)).await;
        has_error_shape(&reply, 400, Shape::OpenAi, HEADER);
        assert!(reply.arrivals.is_empty(), "{list}: {reply:?}");
    }
}

/// The header counts where the policy trusts it, and reaches no instance from anybody else.
pub(crate) async fn untrusted(gateway: &Gateway) {
    for list in ["", "10.99.0.1:80", "nonsense"] {
        let reply = gateway.send(&Request::chat(POOL.1).header(HEADER, list)).await.ok();
        assert_eq!((reply.arrival().1.header(HEADER), reply.header(SERVED)), (None, None));
    }
    let reply = gateway.send(&Request::get("/metrics").header(HEADER, "10.99.0.1:80")).await;
    assert!(reply.arrivals.iter().all(|(_, received)| received.header(HEADER).is_none()), "{reply:?}");
}

/// An endpoint that is gone is replaced by another of the list, and by no other.
pub(crate) async fn retries_stay_within(gateway: &Gateway) {
    let instances = gateway.pool(POOL.0).instances.clone();
    let all = addresses(gateway);
    gateway.fault(instances[0], Fault::Refuse).await;
    for _ in 0..6 {
        let reply = gateway.send(&trusted(Request::chat("auto"), &all[..2].join(","))).await.ok();
        assert_eq!(served(gateway, &reply), all[1]);
    }
    let alone = gateway.send(&trusted(Request::chat("auto"), &all[0])).await;
    assert!(alone.status == 503 && alone.arrivals.is_empty(), "{alone:?}");
}

/// Without the filter everybody serves.
pub(crate) async fn fails_open(gateway: &Gateway) {
    let request =
        Request::chat("Qwen/Qwen2.5-7B-Instruct").header(HEADER, "10.99.0.1:80").header(SELECTION, "10.99.0.1:80");
    for _ in 0..10 {
        gateway.send(&request).await.ok();
    }
}
