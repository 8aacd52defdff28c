//! Names that the filter and Envoy's configuration must agree on.

/// Request header that the routed routes take the cluster from (`cluster_header`).
pub const POOL_HEADER: &str = "x-routebalance-cluster";
/// Request header with the chosen endpoint and its fall-backs, `ip:port,ip:port`, as the endpoint-picker protocol names it.
pub const ENDPOINT_HEADER: &str = "x-gateway-destination-endpoint";
/// Request header that lists the only endpoints which may serve, as gateways give it to an endpoint picker.
pub const SUBSET_HEADER: &str = "x-gateway-destination-endpoint-subset";
/// Namespace of the metadata in which the endpoint-picker protocol has that list, under the header's name.
pub const SUBSET_METADATA: &str = "envoy.lb.subset_hint";
/// Response header: the endpoint that has served, for whom such a list was given.
pub const SERVED_RESPONSE_HEADER: &str = "x-gateway-destination-endpoint-served";
/// Key of the filter state that says "this request was routed"; Envoy knows it as `wasm.` and this.
pub const ROUTED_STATE: &str = "routebalance_routed";
/// What it begins with where the answer streams. A space and the number of the filter's context follow where attempts have a plan.
pub const ROUTED_AS_STREAM: &str = "stream";
/// What it begins with where the answer comes whole, and is silent until then.
pub const ROUTED_AS_WHOLE: &str = "whole";
/// The plugin's root id as an upstream filter of the pools' clusters.
pub const ATTEMPTS_ROOT_ID: &str = "attempts";
/// The plugin's root id as a second instance behind a buffer filter, where a decision's headers are written.
pub const HEADERS_ROOT_ID: &str = "headers";
/// Key of the filter state with these headers, one per line: its name, and behind a space its value, if it is not removed.
pub const HEADERS_STATE: &str = "routebalance_headers";
/// Key of the filter state that says "this request's headers are to be held"; the buffer filter asks for it.
pub const HELD_STATE: &str = "routebalance_held";
/// Its value.
pub const HELD: &str = "yes";
/// Request header that limits how often Envoy tries again.
pub const MAX_RETRIES_HEADER: &str = "x-envoy-max-retries";
/// Request header in which Envoy counts attempts.
pub const ATTEMPT_COUNT_HEADER: &str = "x-envoy-attempt-count";
/// Response header after which Envoy's router makes no other attempt.
pub const NO_RETRY_RESPONSE_HEADER: &str = "x-envoy-ratelimited";
/// Key of the filter state that ends the access log's JSON line: a comma, the request's id and the decision.
pub const DECISION_STATE: &str = "routebalance_decision";
/// Path of the question what the predictor makes of a text.
pub const DEBUG_PREDICT_PATH: &str = "/routebalance/debug/predict";
/// Path that ends the VM, where the drill `vm` is on.
pub const DRILL_VM_PATH: &str = "/routebalance/drill/vm";
/// Namespace of the route metadata.
pub const METADATA_NAMESPACE: &str = "routebalance";
/// Key of the route metadata that names the policy.
pub const METADATA_POLICY: &str = "policy";
/// Key of the metadata with weights of its own.
pub const METADATA_WEIGHTS: &str = "weights";
/// Request header that names a policy.
pub const POLICY_REQUEST_HEADER: &str = "x-routebalance-policy";
/// Request header with weights of quality, latency and cost, `0.8/0.1/0.1`.
pub const WEIGHTS_REQUEST_HEADER: &str = "x-routebalance-weights";
/// How long the instance took, as Envoy tells it where one has answered.
pub const SERVICE_TIME_RESPONSE_HEADER: &str = "x-envoy-upstream-service-time";
/// How Envoy's words on where a response comes from begin where an instance has answered.
pub const VIA_UPSTREAM: &str = "via_upstream";
/// Response header: the model that answers.
pub const MODEL_RESPONSE_HEADER: &str = "x-routebalance-model";
/// Response header: the pool that answers.
pub const POOL_RESPONSE_HEADER: &str = "x-routebalance-pool";
/// Response header: the step of the ladder.
pub const RUNG_RESPONSE_HEADER: &str = "x-routebalance-rung";
/// Its value where Envoy has not sent the request to the endpoint that was chosen.
pub const RUNG_UNHONOURED: &str = "unhonoured";
/// Request header that limits the time of the whole request in Envoy's router, milliseconds.
pub const TIMEOUT_HEADER: &str = "x-envoy-upstream-rq-timeout-ms";
/// Response header: microseconds from the end of the body's scan to the decision.
pub const DECISION_US_RESPONSE_HEADER: &str = "x-routebalance-decision-us";
/// Response header: the instance's address, if the configuration wants it shown.
pub const ENDPOINT_RESPONSE_HEADER: &str = "x-routebalance-endpoint";
/// Path at which the filter takes feedback, if it is configured to.
pub const FEEDBACK_PATH: &str = "/routebalance/feedback";
/// Response header: the filter's own name of the decision, by which feedback names it. Clients cannot choose it.
pub const DECISION_ID_RESPONSE_HEADER: &str = "x-routebalance-decision-id";
/// Header with a request's id, for the log.
pub const REQUEST_ID_HEADER: &str = "x-request-id";
/// Request header in which Envoy keeps what the client has said of its body's encoding, before it unpacks the body.
pub const ENCODING_HEADER: &str = "x-routebalance-content-encoding";
/// Request header that asks for the load of the instance that answers (ORCA).
pub const LOAD_FORMAT_HEADER: &str = "endpoint-load-metrics-format";
/// Response header with that load.
pub const LOAD_RESPONSE_HEADER: &str = "endpoint-load-metrics";
/// Request header: time to the first token that the request insists on, milliseconds.
pub const TTFT_SLO_HEADER: &str = "x-routebalance-ttft-slo-ms";
/// The same as llm-d names it.
pub const TTFT_SLO_ALIAS_HEADER: &str = "x-llm-d-slo-ttft-ms";
/// Request header: time per output token that the request insists on, milliseconds.
pub const TPOT_SLO_HEADER: &str = "x-routebalance-tpot-slo-ms";
/// The same as llm-d names it.
pub const TPOT_SLO_ALIAS_HEADER: &str = "x-llm-d-slo-tpot-ms";
/// Request header: USD that the request may cost.
pub const BUDGET_USD_HEADER: &str = "x-routebalance-budget-usd";
/// Request header: output tokens that the request may have.
pub const BUDGET_TOKENS_HEADER: &str = "x-routebalance-budget-tokens";
/// Request header: least predicted quality, 0 to 1.
pub const QUALITY_MIN_HEADER: &str = "x-routebalance-quality-min";
/// Request header: what happens where no candidate keeps the constraints.
pub const MODE_HEADER: &str = "x-routebalance-mode";
/// Request header: the order in which constraints are given up.
pub const RELAX_ORDER_HEADER: &str = "x-routebalance-relax-order";
/// What the names of this filter's own request headers begin with.
pub const OWN_HEADERS: &str = "x-routebalance-";
/// Response header: why the filter has refused, one word.
pub const REFUSED_REASON_RESPONSE_HEADER: &str = "x-routebalance-refused-reason";
/// Response header: `true` where the prompt alone uses the budget up.
pub const BUDGET_EXHAUSTED_RESPONSE_HEADER: &str = "x-routebalance-budget-exhausted";
/// Response header: whose browsers may read the answer.
pub const ALLOW_ORIGIN_RESPONSE_HEADER: &str = "access-control-allow-origin";
/// Response header: when to come again, seconds.
pub const RETRY_AFTER_HEADER: &str = "retry-after";

/// Declares an enum whose variants have names, and a list of all of them that cannot lack one.
macro_rules! named {
    ($(#[$meta:meta])* pub enum $kind:ident { $($(#[$note:meta])* $variant:ident = $name:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $kind { $($(#[$note])* $variant,)+ }

        impl $kind {
            /// All of them, in the order of their declaration.
            pub const ALL: [$kind; [$($kind::$variant,)+].len()] = [$($kind::$variant,)+];

            /// Its name in statistics, headers and logs.
            pub const fn name(self) -> &'static str {
                match self { $($kind::$variant => $name,)+ }
            }
        }

        impl ::std::fmt::Display for $kind {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

pub(crate) use named;
