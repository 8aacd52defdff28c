//! What must hold of a scenario in which something misbehaves.

use std::time::Duration;

use super::{Course, INSTANCES, Kind, Scene, is_other};
use crate::fault::Reply;
use crate::outcome::{End, Outcome};
use crate::workload::Arrival;
use routebalance_core::fleet::InstanceId;

/// Instances that are asked for one request, most: the two that make it the suspect.
const ATTEMPTS_MAX: usize = 2;
/// Share of the requests that an instance gets of other clients where nothing misbehaves, which it gets at least where something does.
const KEPT_MIN: f64 = 0.5;
/// Requests of an instance from which that is judged: for fewer, half is luck.
const JUDGED_FROM: usize = 24;
/// Share of the looks that may show an instance ejected for error events. Such a stream has begun, so nobody else is asked for it, and
/// three in a row without a good answer meanwhile speak against the instance; until it gives the next one.
const EJECTED_BY_EVENTS_MAX: f64 = 0.1;
/// Probes of a black hole while it is one, most: the back-off between them doubles from one second.
const PROBES_MAX: usize = 6;
/// How long peers may need until they have shown that they serve what a black hole refuses.
const DOUBT: Duration = Duration::from_secs(8);
/// Time after which an instance that has been limited is one like all others, beyond what it has asked for.
const AGAIN: Duration = Duration::from_secs(2);

/// A request, what is said of it, and what has come of it.
struct Seen<'a> {
    arrival: &'a Arrival,
    outcome: &'a Outcome,
}

impl Seen<'_> {
    fn status(&self) -> Option<u16> {
        match self.outcome.end {
            End::Failed { status } => Some(status),
            _ => None,
        }
    }

    /// When it ended.
    fn ended(&self) -> Duration {
        self.outcome.at.saturating_add(self.outcome.e2e.unwrap_or_default())
    }

    /// Whether its own instances are the only ones that have had it, each once, and only one has.
    fn is_sent_once(&self) -> bool {
        self.outcome.attempts == 1 && self.outcome.reruns == 0
    }
}

/// Everything that must not happen, and did.
pub(super) fn violations(scene: &Scene, with: &Course, without: Option<&Course>) -> Vec<String> {
    let mut violations = with.leaks.clone();
    let seen = seen(scene, with);
    for request in &seen {
        if let Some(problem) = problem(scene, request) {
            violations.push(format!("request of {:?} {problem}: {:?}", request.outcome.at, request.outcome.end));
        }
    }
    violations.extend(named_models(scene, &seen));
    violations.extend(ejections(scene, with));
    violations.extend(refusals(scene, &seen));
    if let Some(without) = without {
        let failed =
            self::seen(scene, without).iter().filter(|r| is_other(r.arrival) && !r.outcome.is_answered()).count();
        if failed > 0 {
            violations.push(format!("{failed} requests fail where nothing misbehaves"));
        }
        violations.extend(moved(scene, with, without));
    }
    violations
}

fn seen<'a>(scene: &'a Scene, course: &'a Course) -> Vec<Seen<'a>> {
    let requests = scene.workload.arrivals.iter().zip(&course.outcomes);
    requests.map(|(arrival, outcome)| Seen { arrival, outcome }).collect()
}

/// What is wrong with the end of a request.
fn problem(scene: &Scene, request: &Seen<'_>) -> Option<&'static str> {
    let Seen { arrival, outcome } = request;
    let reply = scene.reply.and_then(Reply::status);
    let is_refused = request.status().is_some() && request.status() == reply;
    let is_in_span = outcome.at <= scene.span.1 && request.ended() >= scene.span.0;
    let is_at_fault = outcome.instance.is_some_and(|instance| scene.faulty.contains(&instance)) && is_in_span;
    if !is_other(arrival) && scene.kind == Kind::Poison {
        return poison_problem(scene, request);
    }
    let may_end = match scene.kind {
        Kind::Poison | Kind::LongAnswers | Kind::LongAnswersHung => outcome.is_answered(),
        Kind::Full | Kind::BlackHole | Kind::LimitedPool => outcome.is_answered() || (is_refused && is_at_fault),
        Kind::LimitedKey => outcome.is_answered() || (is_refused && is_at_fault && !is_other(arrival)),
        Kind::LongAnswersMute => outcome.is_answered() || (is_at_fault && is_over_in_time(scene, request)),
    };
    if !may_end {
        return Some("must not end so");
    }
    let was_stuck = scene.kind == Kind::LongAnswersHung
        && outcome.attempts == 1
        && outcome.reruns == 1
        && outcome.decision.as_ref().is_some_and(|decision| scene.faulty.contains(&decision.to.instance));
    (!request.is_sent_once() && !was_stuck).then_some("was moved by nobody's fault")
}

/// A request that fails everywhere is tried at two instances, where it can be tried again at all, and its client sees how it fails.
fn poison_problem(scene: &Scene, request: &Seen<'_>) -> Option<&'static str> {
    let is_tried_again = scene.reply != Some(Reply::ErrorEvent);
    let attempts = if is_tried_again { ATTEMPTS_MAX } else { 1 };
    let status = scene.reply.map(|reply| reply.status().unwrap_or(502));
    if request.outcome.attempts != attempts {
        return Some("is tried too often, or not often enough");
    }
    (request.status() != status).then_some("ends otherwise than its instances make it end")
}

/// Whether a whole answer that never came has cost its limit of time, and not more.
fn is_over_in_time(scene: &Scene, request: &Seen<'_>) -> bool {
    let least = scene.router.config().health.answer_limit;
    let limit = request.outcome.decision.as_ref().and_then(|decision| decision.answer_limit(least, false));
    request.status() == Some(504) && limit.is_some() && request.outcome.e2e == limit
}

/// The model that a request names.
fn named<'a>(scene: &'a Scene, request: &Seen<'_>) -> Option<&'a str> {
    scene.workload.templates.get(request.arrival.template)?.prompt.model.as_deref()
}

/// A request that names its model gets that one, whatever happens to others.
fn named_models(scene: &Scene, seen: &[Seen<'_>]) -> Vec<String> {
    let fleet = &scene.router.config().fleet;
    let got = |request: &Seen<'_>| Some(fleet.model(request.outcome.model?)?.name.as_str());
    let named = |request: &Seen<'_>| named(scene, request);
    let wrong = seen.iter().filter(|request| named(request).is_some() && got(request) != named(request));
    wrong
        .map(|request| format!("request of {:?} names {:?} and gets another", request.outcome.at, named(request)))
        .collect()
}

/// Nobody is ejected but who is at fault and says nothing of load.
fn ejections(scene: &Scene, with: &Course) -> Vec<String> {
    let may = |instance: InstanceId| {
        matches!(scene.kind, Kind::BlackHole | Kind::LongAnswersHung | Kind::LongAnswersMute)
            && scene.faulty.contains(&instance)
    };
    let allowed = if scene.reply == Some(Reply::ErrorEvent) { EJECTED_BY_EVENTS_MAX } else { 0.0 };
    let ejected = with.ejected.iter().enumerate();
    let wrong = ejected.filter(|(i, looks)| !may(InstanceId::new(*i)) && **looks as f64 > allowed * with.looks as f64);
    wrong.map(|(i, looks)| format!("instance {i} is ejected in {looks} of {} looks", with.looks)).collect()
}

/// What instances refuse, or never answer, is bounded: they are avoided once the gateways know.
fn refusals(scene: &Scene, seen: &[Seen<'_>]) -> Option<String> {
    let gateways = scene.options.gateways;
    let bad: Vec<&Seen<'_>> = seen.iter().filter(|request| !request.outcome.is_answered()).collect();
    let leaves_model = |request: &Seen<'_>| named(scene, request).is_none();
    let has_elsewhere = scene.router.config().fleet.pools.len() > 1;
    let (what, most) = match scene.kind {
        Kind::BlackHole => return swallowed(scene, seen, &bad),
        // What is full empties all the time: its instances are asked again and again.
        Kind::Full if has_elsewhere => {
            let open = seen.iter().filter(|r| leaves_model(r)).count();
            (bad.iter().filter(|r| leaves_model(r)).count(), open / 4)
        }
        Kind::LimitedPool if has_elsewhere => {
            // Two such answers close an instance for as long as it says; after that, one more is enough.
            let rounds = 2 + scene.span.1.saturating_sub(scene.span.0).div_duration_f64(pause(scene)) as usize;
            (bad.iter().filter(|r| leaves_model(r)).count(), INSTANCES * gateways * rounds)
        }
        Kind::LongAnswersMute => {
            let pool_of =
                |i: Option<InstanceId>| scene.router.config().fleet.instance(i?).map(|instance| instance.pool);
            let mute = pool_of(scene.faulty.first().copied());
            let of_pool = seen.iter().filter(|r| pool_of(r.outcome.instance) == mute).count();
            (bad.len(), of_pool / INSTANCES + 4)
        }
        _ => return None,
    };
    (what > most).then(|| format!("{what} requests that might have gone elsewhere got nothing, {most} at most"))
}

/// What a black hole refuses. Whatever it still answers well of what it was sent before takes its refusals back; after that it takes a few
/// refusals, some time in which its peers show that they serve, and probes.
fn swallowed(scene: &Scene, seen: &[Seen<'_>], refused: &[&Seen<'_>]) -> Option<String> {
    let (since, gateways) = (scene.span.0, scene.options.gateways);
    let enough = scene.router.config().health.failures_to_eject as usize;
    let at_hole = |r: &&Seen<'_>| r.outcome.instance.is_some_and(|i| scene.faulty.contains(&i));
    let is_before = |r: &&Seen<'_>| r.outcome.is_answered() && r.outcome.at < since && r.ended() >= since;
    let before: Vec<Duration> = seen.iter().filter(at_hole).filter(is_before).map(Seen::ended).collect();
    let drained = before.iter().max().copied().unwrap_or(since).saturating_add(DOUBT);
    let late = refused.iter().filter(|r| r.outcome.at > drained).count();
    let most = enough * (before.len() + gateways) + (PROBES_MAX + DOUBT.as_secs() as usize) * gateways;
    let is_avoided = refused.len() <= most && late <= (PROBES_MAX + enough) * gateways;
    (!is_avoided).then(|| format!("the black hole refuses {}, {late} of them after {drained:?}", refused.len()))
}

/// For how long an instance wants to be left alone that is at its limit.
fn pause(scene: &Scene) -> Duration {
    match scene.reply {
        Some(Reply::Error { retry_after: Some(after), .. }) => after,
        _ => scene.router.config().health.base_ejection,
    }
}

/// Instances that work lose no requests of other clients, beyond what luck explains; those that have worked again for a while, neither.
fn moved(scene: &Scene, with: &Course, without: &Course) -> Vec<String> {
    let is_faulty = |instance: InstanceId| scene.kind != Kind::LimitedKey && scene.faulty.contains(&instance);
    let again = scene.span.1.saturating_add(pause(scene)).saturating_add(AGAIN);
    let served = |course: &Course, instance: InstanceId| {
        let since = if is_faulty(instance) { again } else { Duration::ZERO };
        let others = seen(scene, course).into_iter().filter(|r| is_other(r.arrival) && r.outcome.at >= since);
        others.filter(|r| r.outcome.instance == Some(instance)).count()
    };
    let instances = scene.router.config().fleet.instances_by_id().map(|(id, _)| id);
    let compared = instances.map(|i| (i, served(with, i), served(without, i)));
    let is_less = |with: usize, without: usize| without >= JUDGED_FROM && (with as f64) < KEPT_MIN * without as f64;
    let wrong = compared.filter(|(instance, with, without)| {
        is_less(*with, *without) && !(is_faulty(*instance) && scene.kind == Kind::BlackHole)
    });
    wrong
        .map(|(i, with, without)| format!("instance {} serves {with} of {without} requests of others", i.index()))
        .collect()
}
