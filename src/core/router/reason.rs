//! Why a request is refused, or left to Envoy's own route: one word each, for machines.

use crate::fleet::Constraint;
use crate::names::named;

named! {
    /// Why a request is refused: the value of the response header `x-routebalance-refused-reason`.
    pub enum RefusalReason {
        /// No instance is expected to send the first token in time.
        Ttft = "ttft",
        /// No instance is expected to send tokens as fast.
        Tpot = "tpot",
        /// No model is expected to answer as well.
        Quality = "quality",
        /// No model is expected to end its answer within the budget.
        Budget = "budget",
        /// Every candidate is saturated, and the policy sheds.
        Saturated = "saturated",
        /// A control header cannot be understood.
        Header = "header",
        /// The body cannot be understood.
        Body = "body",
        /// The request demands more tokens than it may have.
        MinTokens = "min_tokens",
        /// The body is too large, and its beginning does not do.
        TooLarge = "too_large",
        /// No model is called so.
        UnknownModel = "unknown_model",
        /// The model does not do what the API asks.
        WrongKind = "wrong_kind",
        /// Another model has what the request refers to.
        OtherModel = "other_model",
        /// The path has no limits here, and the policy demands them.
        OtherPath = "other_path",
        /// Nobody unpacks the body's encoding.
        EncodedBody = "encoded_body",
        /// Two instances have broken the request off.
        Suspect = "suspect",
        /// The VM that had the request was replaced between two attempts.
        Restarted = "restarted",
        /// The body cannot be written as the next instance needs it.
        Unwritten = "unwritten",
        /// No instance is there that could serve.
        NoInstance = "no_instance",
        /// None of the endpoints that the gateway allows can serve.
        Subset = "subset",
        /// The request has limits, and its headers have gone on before it could be read.
        HeadersGone = "headers_gone",
    }
}

impl From<Constraint> for RefusalReason {
    /// No candidate keeps the constraint.
    fn from(missed: Constraint) -> Self {
        match missed {
            Constraint::Ttft => RefusalReason::Ttft,
            Constraint::Tpot => RefusalReason::Tpot,
            Constraint::Quality => RefusalReason::Quality,
            Constraint::Budget => RefusalReason::Budget,
        }
    }
}

named! {
    /// Why a request is left to Envoy's own route.
    pub enum UntouchedReason {
        /// A path that is not read, or one that only names a model that is not configured.
        OtherPath = "other_path",
        /// Nobody unpacks the body's encoding, and nothing limits the request.
        EncodedBody = "encoded_body",
        /// The model is not configured, and such requests pass.
        UnknownModel = "unknown_model",
        /// Nobody knows whose the stored response is.
        UnknownResponse = "unknown_response",
        /// No instance of a discovered pool is known yet.
        NoInstance = "no_instance",
        /// No instance may serve the request.
        NoCandidate = "no_candidate",
        /// The request's policy does not exist.
        NoPolicy = "no_policy",
        /// Its headers have gone on to Envoy's router, or nobody writes a decision's headers.
        HeadersGone = "headers_gone",
        /// The drill `router` is on.
        Drill = "drill",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn a_constraint_that_is_missed_is_the_reason_under_its_own_name() {
        for constraint in Constraint::ALL {
            assert_eq!(RefusalReason::from(constraint).name(), constraint.name());
        }
    }
}
