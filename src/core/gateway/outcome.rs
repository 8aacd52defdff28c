//! What the log says of requests that are not routed.

use crate::names::named;

named! {
    /// What has become of a request that is not routed.
    pub enum Outcome {
        /// Envoy's own route serves it.
        Passed = "passed",
        /// The gateway has refused it.
        Refused = "refused",
        /// The gateway has answered it itself.
        Answered = "answered",
        /// It went to the instance that has the stored response.
        Returned = "returned",
        /// It was a feedback, and counts.
        Feedback = "feedback",
    }
}

named! {
    /// What a request that is answered or returned was about.
    pub enum Subject {
        /// The list of models, or one of it.
        Models = "models",
        /// Whether the gateway is alive.
        Liveness = "liveness",
        /// A question to the predictor.
        DebugPredict = "debug_predict",
        /// A stored response.
        ResponseItem = "response_item",
    }
}
