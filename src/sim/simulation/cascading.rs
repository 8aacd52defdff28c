//! Cascades: answers that are turned down, and requests that go on to the next model.

use super::{Happening, Simulation};
use crate::contender::Contender;
use crate::outcome::Answer;

impl Simulation<'_> {
    /// Whether the judge turns down the answer that a request has just got.
    pub(super) fn is_turned_down(&self, index: usize) -> bool {
        let Contender::Cascade(cascade) = &self.contender else { return false };
        let outcome = self.outcomes.get(index);
        outcome.is_some_and(|outcome| !cascade.accepts(outcome.template, outcome.turned_down.len()))
    }

    /// The answer is whole and is turned down: its instance is free of it, and the next model is asked once that is judged.
    pub(super) fn send_on(&mut self, index: usize) {
        let Contender::Cascade(cascade) = &self.contender else { return };
        let judged_at = self.now.saturating_add(cascade.judging);
        let Some(mut flight) = self.flights.get_mut(index).and_then(Option::take) else { return };
        if let Some(gateway) = self.gateways.get_mut(flight.gateway)
            && let Some(dispatch) = flight.dispatch.take()
        {
            gateway.finish(flight.worker, dispatch, self.now);
        }
        if let Some(outcome) = self.outcomes.get_mut(index) {
            let output_tokens = std::mem::take(&mut outcome.output_tokens);
            outcome.turned_down.extend(outcome.model.take().map(|model| Answer { model, output_tokens }));
            outcome.attempts = outcome.attempts.saturating_add(flight.attempt).saturating_add(1);
            outcome.ttft = None;
        }
        self.foresee(judged_at, Happening::Decide { gateway: flight.gateway, request: Some(index) });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::contender::{Cascade, Dispatcher};
    use crate::fault::{Fault, Scheduled};
    use crate::outcome::{End, Outcome};
    use crate::simulation::Options;
    use crate::workload::{Arrivals, ChatMix, Template, Workload};
    use routebalance_core::config::Config;
    use routebalance_core::fleet::ModelId;
    use routebalance_core::router::Router;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    const JUDGING: Duration = Duration::from_millis(27);
    const LIMIT: Duration = Duration::from_secs(3_600);

    fn router() -> Router {
        Router::new(Config::parse(include_bytes!("../../../envoy/routebalance.json")).unwrap(), None)
    }

    fn cascade(turned_down: Vec<usize>) -> Contender {
        let models = [0, 1, 3].map(ModelId::new).into();
        let dispatcher = Dispatcher::ShortestQueue;
        Contender::Cascade(Cascade { models, turned_down: turned_down.into(), judging: JUDGING, dispatcher })
    }

    fn run(router: &Router, contender: Contender, workload: &Workload, faults: &[Scheduled]) -> Vec<Outcome> {
        let mut simulation = Simulation::deciding_by(contender, router, workload, faults, Options::default());
        simulation.finish(LIMIT);
        let nobody = |s: &crate::server::Server| s.holds() == 0;
        assert!(simulation.servers().iter().all(nobody), "no instance holds a request");
        let fleet = &router.config().fleet;
        for load in simulation.loads(0).iter().take(fleet.instances.len()) {
            assert!(load.in_flight() < 1e-9, "every dispatch is finished: {load:?}");
        }
        simulation.into_outcomes()
    }

    fn alone(template: Template) -> Workload {
        Workload::drawn(vec![template], &[Duration::from_millis(100)], 0, 1)
    }

    /// An answer that comes after others takes as long as all of them, their judge, and itself.
    #[test]
    fn times_of_answers_turned_down_add_up() {
        let router = router();
        let tokens = vec![40, 50, 60, 70, 0];
        let template = Template::of_counts(300, tokens.clone(), vec![0.0; 5]);
        let workload = alone(template);
        let by_itself = |model: usize| {
            let contender = Contender::Pipeline {
                models: Some([ModelId::new(model)].into()),
                dispatcher: Dispatcher::ShortestQueue,
            };
            let outcome = run(&router, contender, &workload, &[]).remove(0);
            (outcome.ttft.unwrap(), outcome.e2e.unwrap())
        };
        let (first, second, last) = (by_itself(0), by_itself(1), by_itself(3));
        let rows = [
            ("accepted", 0, vec![0], first.0, first.1),
            ("turned down once", 1, vec![0, 1], first.1 + JUDGING + second.0, first.1 + JUDGING + second.1),
            (
                "turned down twice",
                2,
                vec![0, 1, 3],
                first.1 + second.1 + JUDGING * 2 + last.0,
                first.1 + second.1 + JUDGING * 2 + last.1,
            ),
            (
                "there is no further model",
                9,
                vec![0, 1, 3],
                first.1 + second.1 + JUDGING * 2 + last.0,
                first.1 + second.1 + JUDGING * 2 + last.1,
            ),
        ];
        for (name, turned_down, models, ttft, e2e) in rows {
            let outcome = run(&router, cascade(vec![turned_down]), &workload, &[]).remove(0);
            assert_eq!((outcome.end, outcome.decided), (End::Answered, Some(Duration::ZERO)), "{name}");
            assert_eq!((outcome.ttft, outcome.e2e), (Some(ttft), Some(e2e)), "{name}");
            let expected = models.iter().map(|m| Answer { model: ModelId::new(*m), output_tokens: tokens[*m] });
            assert_eq!(outcome.answers().collect::<Vec<_>>(), expected.collect::<Vec<_>>(), "{name}");
            assert_eq!(
                (outcome.attempts, outcome.model),
                (models.len(), models.last().copied().map(ModelId::new)),
                "{name}"
            );
        }
    }

    /// Whoever accepts every first answer is a pipeline of the first model, to the byte; and under load all requests are answered by
    /// the models that their judge says.
    #[test]
    fn a_cascade_under_load() {
        let router = router();
        let templates = ChatMix { templates: 60, ..ChatMix::default() }.templates(&router.config().fleet, 1);
        let times = Arrivals::Poisson { rate: 4.0 }.times(Duration::from_secs(30), 3);
        let workload = Workload::drawn(templates, &times, 0, 3);
        let pipeline =
            Contender::Pipeline { models: Some([ModelId::new(0); 60].into()), dispatcher: Dispatcher::ShortestQueue };
        let first_only = run(&router, cascade(vec![0; 60]), &workload, &[]);
        assert_eq!(first_only, run(&router, pipeline, &workload, &[]));
        let turned_down: Vec<usize> = (0..60).map(|i| i % 3).collect();
        let outcomes = run(&router, cascade(turned_down.clone()), &workload, &[]);
        assert_eq!(outcomes, run(&router, cascade(turned_down.clone()), &workload, &[]), "it repeats itself");
        for outcome in &outcomes {
            assert!(outcome.is_answered());
            let models: Vec<usize> = outcome.answers().map(|answer| answer.model.index()).collect();
            assert_eq!(models, [0, 1, 3][..=turned_down[outcome.template]]);
        }
    }

    #[test]
    fn what_ends_a_request_between_two_answers_ends_it_for_good() {
        let router = router();
        let workload = alone(Template::of_counts(300, vec![40; 5], vec![0.0; 5]));
        let whole = run(&router, cascade(vec![1]), &workload, &[]).remove(0);
        let first = run(&router, cascade(vec![0]), &workload, &[]).remove(0);
        let judged = first.e2e.unwrap() + JUDGING / 2;
        assert!(judged < whole.e2e.unwrap());
        let mut impatient = workload.clone();
        impatient.arrivals[0].patience = Some(judged);
        let restart = Scheduled { at: workload.arrivals[0].at + judged, fault: Fault::RestartGateway { gateway: 0 } };
        for (name, workload, faults, end) in
            [("its client", &impatient, vec![], End::Left), ("its gateway", &workload, vec![restart], End::GatewayDied)]
        {
            let outcome = run(&router, cascade(vec![1]), workload, &faults).remove(0);
            assert_eq!((outcome.end, outcome.e2e, outcome.ttft), (end, Some(judged), None), "{name}");
            assert_eq!((outcome.answers().count(), outcome.model), (1, None), "{name}: the second model is not asked");
        }
    }
}
