//! `cargo test`: what users of the gateway get, through a real Envoy with two or four workers and emulated instances, and once more in
//! virtual time.
//!
//! Scenarios are grouped by configuration: one gateway serves a group, since each Envoy boots for seconds. After every scenario the
//! reckoned load must be zero again. The same scenarios run in virtual time, where the gateway is the same and Envoy is acted out; those
//! marked `envoy` are about Envoy's own work, and run there only.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]
#![allow(clippy::disallowed_methods, reason = "real time is what these tests wait in")]

#[path = "envoy/admission.rs"]
mod admission;
#[path = "envoy/affinity.rs"]
mod affinity;
#[path = "envoy/batching.rs"]
mod batching;
#[path = "envoy/clients.rs"]
mod clients;
#[path = "envoy/discovery.rs"]
mod discovery;
#[path = "envoy/endpoint_picker.rs"]
mod endpoint_picker;
#[path = "envoy/faults.rs"]
mod faults;
#[path = "envoy/fleets.rs"]
mod fleets;
mod harness;
#[path = "envoy/health.rs"]
mod health;
#[path = "instance/http.rs"]
#[allow(dead_code, reason = "what only the tests of the instance look at")]
mod http;
#[path = "envoy/learning.rs"]
mod learning;
#[path = "envoy/manners.rs"]
mod manners;
#[path = "envoy/own.rs"]
mod own;
#[path = "envoy/packages.rs"]
mod packages;
#[path = "envoy/parity.rs"]
mod parity;
#[path = "envoy/passage.rs"]
mod passage;
#[path = "envoy/prices.rs"]
mod prices;
#[path = "envoy/python.rs"]
mod python;
#[path = "envoy/refusals.rs"]
mod refusals;
mod scenarios;
#[path = "envoy/setups.rs"]
mod setups;
#[path = "envoy/state.rs"]
mod state;
#[path = "envoy/strangers.rs"]
mod strangers;
#[path = "envoy/tenants.rs"]
mod tenants;
mod virtual_time;

use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;

use harness::{Gateway, Kind, Setup, Stage};
use libtest_mimic::{Arguments, Trial};
use routebalance_instance::Fault;
use scenarios::{APIS, NAMES, PASSED, REFUSED, Served, is_passed, is_refused, is_served};
use setups::{
    ADMISSION, AFFINITY, BATCHING, BLIND, BYPASSED, CLIENTS, DISCOVERED, FOUND_OUT, HEADERS, HEALTH, HEALTH_OF_FOUR,
    KUBERNETES, LEAN, LEARNING, MANNERS, OLDER, OWN, PACKAGES, PACKAGES_DISCOVERED, PICKER, PRICES, REFERENCE, STATIC,
    STRANGERS, TENANTS, UNTOUCHED, VM, WITHOUT_BUFFER, WITHOUT_WRITER,
};
use strangers::gone::{Sent, favourite_is_gone};

/// Says which stage's second half a process runs. Two halves side by side take half as long: with Envoy each waits most of its time, and
/// in virtual time each has a processor.
const HALF_VARIABLE: &str = "ROUTEBALANCE_ENVOY_HALF";
/// Kinds of gateways by the names that this variable knows, in the order in which they run.
const KINDS: [(&str, Kind); 3] =
    [("virtual time", Kind::Virtual), ("real time", Kind::Envoy), ("without the flag", Kind::EnvoyWithoutFlag)];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // One gateway at a time, in the order of the list.
    arguments.test_threads = Some(1);
    let half = std::env::var(HALF_VARIABLE).ok();
    let succeeded = match KINDS.into_iter().find(|(name, _)| half.as_deref() == Some(name)) {
        Some((_, kind)) => run(&arguments, second_half(&Stage::new(kind))),
        None if arguments.filter.is_none() && arguments.skip.is_empty() && !arguments.list => {
            // One after the other: in virtual time no processor is idle, and in real time they must be.
            let ran = KINDS.map(|(name, kind)| side_by_side(&arguments, name, first_half(&Stage::new(kind))));
            ran.into_iter().all(|succeeded| succeeded)
        }
        None => {
            let stages = KINDS.map(|(_, kind)| Stage::new(kind));
            let trials = stages.iter().flat_map(|stage| first_half(stage).into_iter().chain(second_half(stage)));
            run(&arguments, trials.collect())
        }
    };
    if succeeded { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(arguments: &Arguments, trials: Vec<Trial>) -> bool {
    !libtest_mimic::run(arguments, trials).has_failed()
}

/// Runs one half here and the other one in a process of its own; what that says is shown at the end.
fn side_by_side(arguments: &Arguments, kind: &str, first_half: Vec<Trial>) -> bool {
    let this = std::env::current_exe().expect("this program");
    let other: Child = Command::new(this)
        .args(std::env::args_os().skip(1))
        .env(HALF_VARIABLE, kind)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the other half starts");
    // Read as it comes: a pipe that is full would stop it.
    let other = std::thread::spawn(move || other.wait_with_output());
    let succeeded = run(arguments, first_half);
    let output = other.join().expect("the other half ends").expect("it has said what came of it");
    print!("{}", String::from_utf8_lossy(&output.stdout));
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    output.status.success() && succeeded
}

/// Scenarios on a gateway of one set-up; `envoy` marks those about Envoy's own work.
macro_rules! scenarios {
    ($stage:expr, $setup:expr, $($($mark:ident)? $name:literal => $run:expr),+ $(,)?) => {
        [$(scenarios!(@row $stage, $setup, $($mark)? $name, $run)),+].into_iter().flatten()
    };
    (@row $stage:expr, $setup:expr, $name:literal, $run:expr) => {
        $stage.trial($name, $setup, async |gateway: &Gateway| $run(gateway).await)
    };
    (@row $stage:expr, $setup:expr, envoy $name:literal, $run:expr) => {
        $stage.envoy($name, $setup, async |gateway: &Gateway| $run(gateway).await)
    };
}

fn first_half(stage: &Arc<Stage>) -> Vec<Trial> {
    let served = |setup: &'static Setup, rung: &'static str, row: &'static Served| {
        stage.trial(&format!("{} is served", row.0), setup, async move |gateway| is_served(gateway, row, rung).await)
    };
    let mut trials = Vec::new();
    trials.extend(APIS.iter().chain(NAMES).filter_map(|row| served(&REFERENCE, "fused", row)));
    trials.extend(REFUSED.iter().filter_map(|row| {
        stage.trial(&format!("{} is refused", row.0), &REFERENCE, async move |gateway| is_refused(gateway, row).await)
    }));
    trials.extend(PASSED.iter().filter_map(|row| {
        stage.envoy(&format!("{} passes", row.0), &REFERENCE, async move |gateway| is_passed(gateway, row).await)
    }));
    trials.extend(scenarios!(stage, &REFERENCE,
        "clients see the list of models and each of its entries" => state::models,
        "a stream arrives token by token" => state::stream_is_not_held_back,
        "two requests on one connection are both served" => state::two_on_one_connection,
        "thirty requests at once are served and spread" => state::thirty_at_once,
        envoy "the predictor inside Envoy gives the numbers of onnxruntime" => parity::predictions_match,
        envoy "the predictor inside Envoy reads broken text as the native one does" => parity::broken_text_is_the_same_text_everywhere,
        "the predictor refuses questions that are none" => parity::questions_that_are_none,
        "a stored response is found again from any connection" => state::stored_response,
        "two routes choose differently for the same prompt" => state::routes_choose_differently,
        "control headers of the client choose nothing" => state::control_headers_choose_nothing,
        "a body of 1 MB with the model at its end is served" => state::one_megabyte,
        "an instance that is gone is not chosen any more" => faults::gone_is_avoided,
        "a pool that is gone costs no request" => faults::pool_is_gone,
        "a stream that an instance resets ends for the client too" => faults::reset_in_the_middle,
        "an instance's own error reaches the client" => faults::instance_errors,
        "an error inside a stream reaches the client" => faults::error_inside_a_stream,
        "a client may leave in the middle of a stream" => faults::client_leaves_a_stream,
        "a client may leave before the answer" => faults::client_leaves_before_the_answer,
        "a client may leave in the middle of its own body" => faults::client_leaves_its_body,
        "an instance with stale metrics serves" => faults::stale_metrics,
        "without metrics the gateway reckons on its own" => faults::no_metrics,
        "broken metrics are as good as none" => faults::broken_metrics,
        "slow metrics are as good as none" => faults::slow_metrics,
        "the access log has one JSON line per request and no prompt" => state::access_log,
        "the log says what a request has cost whose client left" => state::log_of_a_client_that_left,
    ));
    trials.extend(APIS.iter().take(2).filter_map(|row| served(&LEAN, "priors", row)));
    trials.extend(scenarios!(stage, &LEAN,
        "two routes choose differently, found by their names alone" => state::routes_choose_differently,
        "a body beyond the limit arrives whole if it names its model first" => state::model_first_streams_on,
        "a body beyond the limit is refused if it names its model last" => state::model_last_is_too_large,
        "a question to the predictor passes through where it is not configured" => parity::nobody_is_asked,
        "an unknown model passes through" => state::unknown_model_passes,
    ));
    trials.extend(scenarios!(stage, &LEARNING,
        "a model that answers longer than predicted is expected to by all workers" => learning::lengths,
        "feedback is refused where it cannot count" => learning::feedback_statuses,
        "feedback counts once, whichever worker it meets" => learning::feedback_counts_once,
        "clients learn the id of a request that had none" => learning::request_ids,
        "an id that two clients use steers nobody's feedback" => learning::reused_ids,
        "bad scores move a kind of prompt to another model" => learning::scores_move_the_choice,
        "exploration draws models as often as their propensities say" => learning::exploration,
    ));
    trials.extend(scenarios!(stage, &ADMISSION,
        "headers count where the policy trusts them" => admission::headers_count_where_trusted,
        "headers are ignored where it does not" => admission::headers_are_ignored_where_untrusted,
        "a header that cannot be understood is named" => admission::headers_that_are_none,
        "the filter's own headers do not reach an instance" => admission::own_headers_end_here,
        "strict requests are refused with a reason and a time to come again" => admission::strict_is_refused,
        "constraints give way in the request's order" => admission::relaxed_in_order,
        "a budget caps the answer wherever its limit stands in the body" => admission::budgets_cap_the_answer,
        "a budget that is used up is flagged" => admission::budgets_are_used_up,
        "saturated instances shed" => admission::saturated_instances_shed,
        envoy "what is not read passes no limits by" => admission::no_way_round,
        "an endpoint of the list serves, and it is said which" => endpoint_picker::follows_header,
        "no endpoint of the list can serve, or it is no list" => endpoint_picker::none_is_left,
        "a list of endpoints counts where it is trusted" => endpoint_picker::untrusted,
        "retries stay within the list" => endpoint_picker::retries_stay_within,
    ));
    trials.extend(APIS.iter().take(3).filter_map(|row| served(&BATCHING, "fused", row)));
    trials.extend(scenarios!(stage, &BATCHING,
        "requests at once are batched and all are served" => batching::at_once,
        "the longest request of a batch is decided first" => batching::longest_first,
        "a lone request leaves at the cap, or at once where nobody is expected" => batching::lone,
        "what cannot gain by waiting does not wait" => batching::at_once_alone,
        "a body beyond the limit does not wait" => batching::beyond_the_limit,
        "an instance that is gone costs no request of a batch" => batching::neighbours_serve,
        "a client may leave while its request waits" => batching::client_leaves,
        "a request that its batch refuses is answered" => batching::refused,
        envoy "a request that waits is served while its listener drains" => batching::drained,
    ));
    trials.extend(stage.envoy_alone(
        "two configurations see each other's load and ask each instance once",
        &TENANTS,
        async |gateway| tenants::see_each_other(&gateway).await,
    ));
    trials.extend(scenarios!(stage, &PRICES,
        "a forecast that is too low: prices rise until the SLO holds" => prices::forecast_too_low,
    ));
    trials.extend(scenarios!(stage, &MANNERS,
        envoy "packed requests are decided" => manners::packed_bodies,
        envoy "a request that unpacks to too much costs no memory" => manners::bombs,
        "a refusal reaches a client that is still sending" => manners::refused_while_sending,
        envoy "a body that never ends is ended" => manners::slow_bodies,
        "a body beyond what is read passes no limit by" => manners::beyond_what_is_read,
        "limits hold however they are spelt" => manners::spelt_limits,
        "a trusted header that comes twice is refused" => manners::headers_twice,
        "text counts in whatever field it stands" => manners::text_in_other_fields,
        "a call that names a model goes to an instance of it" => manners::calls_that_name_a_model,
        "everything below a stored response goes to its holder" => manners::below_a_response,
        "whatever servers embed reaches one" => manners::inputs_to_embed,
        envoy "Envoy's own errors have the shape of the API" => manners::errors_of_envoy,
    ));
    trials.extend(scenarios!(stage, &CLIENTS,
        envoy "the official SDKs see what they see at the instance" => clients::sdks,
    ));
    for setup in OLDER {
        trials.extend(APIS.iter().take(3).filter_map(|row| {
            stage.envoy(&format!("{} is served", row.0), setup, async move |gateway| {
                is_served(gateway, row, "fused").await
            })
        }));
        trials.extend(REFUSED.iter().take(1).filter_map(|row| {
            stage.envoy(&format!("{} is refused", row.0), setup, async move |gateway| is_refused(gateway, row).await)
        }));
        trials.extend(PASSED.iter().take(1).filter_map(|row| {
            stage.envoy(&format!("{} passes", row.0), setup, async move |gateway| is_passed(gateway, row).await)
        }));
        trials.extend(scenarios!(stage, setup,
            envoy "a stream arrives token by token" => state::stream_is_not_held_back,
            envoy "thirty requests at once are served and spread" => state::thirty_at_once,
            envoy "two routes choose differently for the same prompt" => state::routes_choose_differently,
            envoy "a body of 1 MB with the model at its end is served" => state::one_megabyte,
            envoy "control headers of the client choose nothing" => state::control_headers_choose_nothing,
            envoy "a pool that is gone costs no request" => faults::pool_is_gone,
            envoy "an instance that drains is avoided" => async |g: &Gateway| health::refuses(g, Fault::Drain).await,
        ));
        trials.extend(stage.envoy(
            "a request that finds its favourite model gone is served by another",
            setup,
            async |gateway| favourite_is_gone(gateway, Sent::Whole).await,
        ));
    }
    trials.extend(stage.plain("however limits are spelt, servers read what the gateway has read", clients::spellings));
    trials
}

fn second_half(stage: &Arc<Stage>) -> Vec<Trial> {
    let served = |setup: &'static Setup, rung: &'static str, row: &'static Served| {
        stage.trial(&format!("{} is served", row.0), setup, async move |gateway| is_served(gateway, row, rung).await)
    };
    let mut trials = Vec::new();
    trials.extend(scenarios!(stage, &AFFINITY,
        "a long prefix goes to the instance that has it, whichever worker decides" => affinity::prefix,
        "the log says how much of a prompt was cached" => affinity::cached_tokens,
        "a system prompt that comes after the messages goes where it is kept" => affinity::system_after_messages,
        "instructions that come after the input go where they are kept" => affinity::instructions_after_input,
        "a conversation is found again through another API" => affinity::other_api,
        "a prompt with another salt is nowhere cached" => affinity::cache_salt,
        "an instance that has the prefix and a load is left alone" => affinity::loaded_holder,
        "a session stays where it is" => affinity::session,
        "an adapter is asked for by its name and found where it is loaded" => affinity::adapter,
    ));
    trials.extend(APIS.iter().take(2).filter_map(|row| served(&STATIC, "static", row)));
    trials.extend(scenarios!(stage, &STATIC,
        "a request to an instance that is gone is served by its neighbour" => faults::neighbour_serves,
        "a request that is reset before its answer is served by the neighbour" => faults::neighbour_serves_after_reset,
        "all instances of a model gone: 503, and the others serve" => faults::model_is_gone,
    ));
    trials.extend(APIS.iter().take(2).filter_map(|row| served(&DISCOVERED, "fused", row)));
    trials.extend(scenarios!(stage, &DISCOVERED,
        "a discovered pool is scaled down and up" => discovery::scaled,
        "an instance that goes ends its streams and gets no other" => discovery::goes_while_it_serves,
        "an instance that Envoy holds for ill gets no request" => discovery::unhealthy,
        "a discovered pool without instances costs others nothing" => discovery::emptied,
        "all instances come and go under load and nothing is lost" => discovery::churn,
    ));
    trials.extend(scenarios!(stage, &HEADERS,
        "what a response header says of the load is known to all workers" => discovery::reported_in_headers,
        "a client that asks for the load gets it, and no other does" => discovery::headers_of_the_client,
    ));
    trials.extend(scenarios!(stage, &BLIND,
        "while nobody tells the hosts of a pool Envoy chooses among them" => discovery::nobody_tells,
    ));
    trials.extend(scenarios!(stage, &UNTOUCHED,
        "without a decision Envoy's own route serves" => state::untouched,
    ));
    trials.extend(PASSED.iter().filter_map(|row| {
        stage.envoy(&format!("{} passes", row.0), &BYPASSED, async move |gateway| is_passed(gateway, row).await)
    }));
    trials.extend(scenarios!(stage, &BYPASSED,
        envoy "without the filter the default pool serves, and control headers choose nothing" => state::bypassed,
        envoy "without the filter no list of endpoints is needed" => endpoint_picker::fails_open,
    ));
    for setup in [&HEALTH, &HEALTH_OF_FOUR] {
        trials.extend(scenarios!(stage, setup,
            "instances are killed and restarted under load" => health::killed_and_restarted,
            "an instance that hangs costs a time-out at most" => async |g: &Gateway| health::hung(g, true).await,
            "a whole answer whose instance hangs comes from another" => async |g: &Gateway| health::hung(g, false).await,
            "an instance that drains is avoided" => async |g: &Gateway| health::refuses(g, Fault::Drain).await,
            "an instance whose engine is dead is avoided" => async |g: &Gateway| health::refuses(g, Fault::Error500).await,
            "requests that fail everywhere eject nobody" => health::poison,
            "an instance that breaks streams is avoided" =>
                async |g: &Gateway| health::breaks_streams(g, Fault::Reset { after_events: 4 }, "truncated").await,
            "an instance that sends errors inside streams is avoided" =>
                async |g: &Gateway| health::breaks_streams(g, Fault::StreamError { after_events: 4 }, "error_event").await,
            "a pool dies, and only what was sent to it fails" => health::pool_dies,
            "metrics that are always zero herd nobody" => async |g: &Gateway| health::lies(g, Fault::MetricsZero).await,
            "metrics that are no numbers herd nobody" => async |g: &Gateway| health::lies(g, Fault::MetricsNan).await,
            "absurd metrics starve nobody" => async |g: &Gateway| health::lies(g, Fault::MetricsAbsurd).await,
            "stale metrics herd nobody" => async |g: &Gateway| health::lies(g, Fault::MetricsStale).await,
            "forty clients leave in the middle of their streams" => health::clients_leave_in_bulk,
        ));
        trials.extend(stage.alone("Envoy is killed and started again", setup, health::envoy_is_killed));
    }
    trials.extend(scenarios!(stage, &STRANGERS,
        "a request that gets 500 everywhere is tried at two instances" =>
            async |g: &Gateway| strangers::fails_everywhere(g, 500).await,
        "a request that gets 502 everywhere is tried at two instances" =>
            async |g: &Gateway| strangers::fails_everywhere(g, 502).await,
        "an instance that answers 401 to everybody is avoided" => async |g: &Gateway| strangers::black_hole(g, 401).await,
        "an instance that answers 403 to everybody is avoided" => async |g: &Gateway| strangers::black_hole(g, 403).await,
        "an instance that answers 404 to everybody is avoided" => async |g: &Gateway| strangers::black_hole(g, 404).await,
        "an instance that answers 400 to everybody is avoided" => async |g: &Gateway| strangers::black_hole(g, 400).await,
        "an instance that answers nothing with 200 is avoided" => strangers::empty_answers,
        "an instance that cuts whole answers is avoided" => strangers::truncated_answers,
        "an answer that ends with trailers is one like any other" => strangers::trailers,
        "the log says what a stream has told before it was cut" => strangers::cut_stream,
        "an instance that never answers costs the answer's limit, once" => strangers::never_answers,
        "an instance at work may take long for a whole answer" => strangers::long_answer,
        "what passes goes around the dead, and takes its time" => strangers::passed_around_the_dead,
        "nobody listens: 503 in the API's shape, and when to come again" => strangers::gone::nobody_listens,
        "requests on which the favourite model hangs up are served by another" => strangers::gone::favourite_hangs_up,
        "a pool that is limited everywhere is avoided, and nobody is ejected" => strangers::limited_everywhere,
        "an instance with one limited key keeps serving the others" => strangers::one_key_is_limited,
        "a pool at its capacity gets no more requests than were sent" => strangers::at_capacity,
        "errors inside streams that are load or the client's eject nobody" => strangers::error_events,
    ));
    trials.extend(
        [Sent::Whole, Sent::AsStream, Sent::ToMessages, Sent::InChunks, Sent::Large, Sent::LargeInChunks]
            .into_iter()
            .filter_map(|sent| {
                let name = format!("a request that finds its favourite model gone is served by another ({sent:?})");
                stage.trial(&name, &STRANGERS, async move |gateway| favourite_is_gone(gateway, sent).await)
            }),
    );
    trials.extend(scenarios!(stage, &PICKER,
        envoy "an endpoint of the list in the metadata serves, and it is said which" => endpoint_picker::follows_metadata,
    ));
    if stage.has_flag() {
        trials.extend(scenarios!(stage, &FOUND_OUT,
            envoy "a plugin without the flag is found out, and every request is decided" => passage::found_out,
            envoy "a body that the buffer does not hold is refused in the API's shape" => passage::beyond_the_buffer,
        ));
        trials.extend(scenarios!(stage, &WITHOUT_WRITER,
            envoy "requests pass undecided, and the log says what is missing" => passage::without_writer,
        ));
        trials.extend(scenarios!(stage, &WITHOUT_BUFFER,
            envoy "requests pass undecided, and limits are kept" => passage::incomplete,
        ));
    }
    for setup in PACKAGES {
        trials.extend(APIS.iter().filter_map(|row| {
            stage.envoy(&format!("{} is served", row.0), setup, async move |gateway| {
                is_served(gateway, row, "fused").await
            })
        }));
        trials.extend(REFUSED.iter().take(2).filter_map(|row| {
            stage.envoy(&format!("{} is refused", row.0), setup, async move |gateway| is_refused(gateway, row).await)
        }));
        trials.extend(scenarios!(stage, setup,
            envoy "a stream arrives token by token" => state::stream_is_not_held_back,
            envoy "thirty requests at once are served and spread" => state::thirty_at_once,
            envoy "two routes choose differently for the same prompt" => state::routes_choose_differently,
            envoy "control headers of the client choose nothing" => state::control_headers_choose_nothing,
            envoy "a body of 1 MB with the model at its end is served" => state::one_megabyte,
            envoy "a pool that is gone costs no request" => faults::pool_is_gone,
        ));
        if !std::ptr::eq(setup, &KUBERNETES) {
            trials.extend(scenarios!(stage, setup,
                envoy "other hosts of the listener are left alone" => packages::others_are_left_alone,
            ));
        }
        trials.extend([Sent::Whole, Sent::InChunks].into_iter().filter_map(|sent| {
            let name = format!("a request that finds its favourite model gone is served by another ({sent:?})");
            stage.envoy(&name, setup, async move |gateway| favourite_is_gone(gateway, sent).await)
        }));
    }
    for setup in PACKAGES_DISCOVERED {
        trials.extend(APIS.iter().take(2).filter_map(|row| {
            stage.envoy(&format!("{} is served", row.0), setup, async move |gateway| {
                is_served(gateway, row, "fused").await
            })
        }));
        trials.extend(scenarios!(stage, setup,
            envoy "a discovered pool is scaled down and up" => discovery::scaled,
            envoy "all instances come and go under load and nothing is lost" => discovery::churn,
        ));
    }
    trials
        .extend(stage.plain("the objects for every platform are valid by others' models", packages::objects_are_valid));
    trials.extend(scenarios!(stage, &OWN,
        "a model that the predictor does not know is decided by its priors, and nothing has failed" => own::unpredicted,
        "an endpoint that Envoy does not honour is said" => own::unhonoured,
        envoy "a request crosses between the VM and its host no more often than it did" => own::crossings,
    ));
    trials.extend(stage.envoy_alone("a VM that traps is replaced, and leaves no load behind", &VM, health::vm_dies));
    trials.extend(fleets::trials(stage));
    trials.extend(stage.plain(
        "a wrong configuration: Envoy does not start and names the field, and so does check",
        refusals::names_the_field,
    ));
    trials
}
