//! The names of statistics. Each begins with its variant's own name; what it is about follows, each part behind a dot:
//! `decisions.<pool>.<rung>`.

use crate::health::Failure;
use crate::names::named;
use crate::router::{RefusalReason, Rung, UntouchedReason};

/// Declares an enum of names that may have parts, and a list of all of them that cannot lack one.
macro_rules! with_parts {
    ($(#[$meta:meta])* pub enum $kind:ident<$life:lifetime> {
        $($(#[$note:meta])* $variant:ident $({ $($part:ident: $type:ty = $some:expr),+ })? = $name:literal,)+
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $kind<$life> {
            $($(#[$note])* $variant $({ $(#[doc = concat!("The name's part `", stringify!($part), "`.")] $part: $type),+ })?,)+
        }

        impl $kind<'static> {
            /// All of them, in the order of their declaration, with some part where they have parts.
            pub const ALL: &'static [$kind<'static>] = &[$($kind::$variant $({ $($part: $some),+ })?,)+];
        }

        impl $kind<'_> {
            /// What the name begins with.
            pub fn name(&self) -> &'static str {
                match self { $($kind::$variant { .. } => $name,)+ }
            }

            /// What follows, as the documents write it: `.<pool>.<rung>`.
            pub fn parts(&self) -> &'static str {
                match self { $($kind::$variant { .. } => concat!($($(".<", stringify!($part), ">"),+)?),)+ }
            }
        }

        impl ::std::fmt::Display for $kind<'_> {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.write_str(self.name())?;
                match self {
                    $($kind::$variant $({ $($part),+ })? => { $($(write!(f, ".{}", $part)?;)+)? })+
                }
                Ok(())
            }
        }
    };
}

with_parts! {
    /// A counter.
    pub enum Counter<'a> {
        /// Requests that were routed.
        Decisions { pool: &'a str = "", rung: Rung = Rung::Fused } = "decisions",
        /// Requests that were left to Envoy's own route.
        Untouched { reason: UntouchedReason = UntouchedReason::OtherPath } = "untouched",
        /// Requests whose route names a policy that there is not, or weights that cannot be understood.
        RouteMetadataUnread = "route_metadata_unread",
        /// Requests that found no instance of the only pools that may serve them.
        WithoutInstance { pool: &'a str = "" } = "without_instance",
        /// Requests that were refused, by status.
        Refused { status: u16 = 0 } = "refused",
        /// The same by reason.
        RefusedFor { reason: RefusalReason = RefusalReason::Ttft } = "refused_for",
        /// Feedback that counts.
        FeedbackAccepted = "feedback.accepted",
        /// Feedback that does not.
        FeedbackRefused = "feedback.refused",
        /// Requests that another instance than the chosen one has answered.
        ServedByFallback = "served_by_fallback",
        /// Of those, the ones that another model has answered.
        ServedByOtherModel = "served_by_other_model",
        /// Further attempts and reruns.
        Moves = "moves",
        /// Whole answers that another instance was asked for.
        Reruns = "reruns",
        /// Requests that Envoy itself has answered.
        Unserved { status: u16 = 0 } = "unserved",
        /// First attempts that Envoy has sent elsewhere.
        EndpointUnhonoured = "endpoint_unhonoured",
        /// Failures that may be an instance's.
        Failures { kind: Failure = Failure::Unanswered } = "failures",
        /// Metrics pages with a load.
        ScrapesOk = "scrapes.ok",
        /// Metrics pages without one.
        ScrapesUnusable = "scrapes.unusable",
        /// Scrapes without an answer.
        ScrapesFailed = "scrapes.failed",
        /// Loads that response headers have told.
        HeaderReports = "header_reports",
        /// Answers of Envoy's admin listener.
        DiscoveriesOk = "discoveries.ok",
        /// What was none.
        DiscoveriesFailed = "discoveries.failed",
        /// Workers whose load the others do not see.
        WithoutSlot = "without_slot",
        /// Batches that were decided.
        Batches = "batches",
    }
}

with_parts! {
    /// A gauge.
    pub enum Gauge<'a> {
        /// Requests that all workers have sent and not seen finished.
        OutstandingRequests { pool: &'a str = "" } = "outstanding_requests",
        /// Prompt tokens of those that have no first token yet.
        OutstandingPromptTokens { pool: &'a str = "" } = "outstanding_prompt_tokens",
        /// Expected output tokens that have not come yet.
        OutstandingOutputTokens { pool: &'a str = "" } = "outstanding_output_tokens",
        /// Requests that all workers have sent.
        DispatchedRequests { pool: &'a str = "" } = "dispatched_requests",
        /// Instances that are out.
        EjectedInstances { pool: &'a str = "" } = "ejected_instances",
        /// Hosts of the pool's cluster.
        PresentInstances { pool: &'a str = "" } = "present_instances",
        /// Hosts of it that are degraded: they serve where the others do not suffice.
        DegradedInstances { pool: &'a str = "" } = "degraded_instances",
        /// Hosts of it that Envoy holds for ill.
        UnhealthyInstances { pool: &'a str = "" } = "unhealthy_instances",
        /// 1 where a request of the last minute has found no instance of the pool: a sign to start one.
        WantedInstances { pool: &'a str = "" } = "wanted_instances",
        /// Learnt factor on the time to the first token, times 1,000.
        TtftCorrectionMilli { pool: &'a str = "" } = "ttft_correction_milli",
        /// Learnt factor on the time per token, times 1,000.
        TpotCorrectionMilli { pool: &'a str = "" } = "tpot_correction_milli",
        /// Learnt factor on output tokens, times 1,000.
        OutputTokensCorrectionMilli { model: &'a str = "" } = "output_tokens_correction_milli",
        /// What a request to the model costs now, in millionths.
        PriceMicro { policy: &'a str = "", model: &'a str = "" } = "price_micro",
        /// By how much demand is taken to be higher than it is, times 1,000.
        SurchargeMilli { policy: &'a str = "" } = "surcharge_milli",
    }
}

named! {
    /// A histogram.
    pub enum Histogram {
        /// From the end of the scan to the decision, microseconds.
        DecisionUs = "decision_us",
        /// Requests of a batch.
        BatchSize = "batch_size",
        /// What a request has waited for its batch, milliseconds.
        BatchWaitMs = "batch_wait_ms",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn parts_follow_the_name() {
        let decisions = Counter::Decisions { pool: "small", rung: Rung::Priors };
        assert_eq!(decisions.to_string(), "decisions.small.priors");
        assert_eq!((decisions.name(), decisions.parts()), ("decisions", ".<pool>.<rung>"));
        assert_eq!(Counter::Refused { status: 429 }.to_string(), "refused.429");
        assert_eq!(Counter::FeedbackAccepted.to_string(), "feedback.accepted");
        assert_eq!(Gauge::PriceMicro { policy: "fast", model: "m" }.to_string(), "price_micro.fast.m");
    }
}
