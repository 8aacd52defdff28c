//! Ticks, scrapes and faults of a simulation.

use serde_json::{Value, json};

use super::{Asked, Flight, Happening, News, Simulation, flight_of};
use crate::fault::Fault;
use crate::gateway::Vm;
use crate::outcome::End;
use crate::server::{Health, Server};
use routebalance_core::fleet::InstanceId;
use routebalance_core::learning::speed::AnswerTiming;
use routebalance_core::worker::{Fetch, Purpose, ScrapeAnswer};

impl Simulation<'_> {
    pub(super) fn tick(&mut self) {
        let Simulation { servers, flights, gateways, options, now, .. } = self;
        // What the streams of one instance have brought, by gateway and worker: there are few of these, and many streams.
        let mut sums: Vec<Option<u64>> = vec![None; gateways.len().saturating_mul(options.workers)];
        for (place, server) in servers.iter().enumerate().filter(|(_, server)| server.health() == Health::Up) {
            let instance = InstanceId::new(place);
            for (job, generated) in server.engine().generated(*now) {
                let (index, attempt) = flight_of(job);
                let Some(flight) = flights.get_mut(index).and_then(Option::as_mut) else { continue };
                let new = generated.saturating_sub(flight.seen);
                // What comes before the gateway has heard of the first token is still on its way.
                if flight.attempt != attempt || !flight.began || new == 0 {
                    continue;
                }
                flight.seen = generated;
                flight.progressed_at = *now;
                let Some(dispatch) = flight.dispatch.as_mut() else { continue };
                let predicted = dispatch.stream(u64::from(new));
                let at = flight.gateway.saturating_mul(options.workers).saturating_add(flight.worker);
                match sums.get_mut(at).filter(|_| dispatch.instance == instance) {
                    Some(sum) => *sum = Some(sum.unwrap_or(0).saturating_add(predicted)),
                    None => {
                        let gateway = gateways.get_mut(flight.gateway);
                        gateway.into_iter().for_each(|g| g.streamed(flight.worker, dispatch.instance, predicted));
                    }
                }
            }
            for (gateway, of_gateway) in gateways.iter_mut().zip(sums.chunks_mut(options.workers.max(1))) {
                for (worker, sum) in of_gateway.iter_mut().enumerate() {
                    sum.take().into_iter().for_each(|predicted| gateway.streamed(worker, instance, predicted));
                }
            }
        }
        for gateway in 0..self.gateways.len() {
            let fetches = self.gateways.get_mut(gateway).map(|home| home.tick(self.now)).unwrap_or_default();
            fetches.into_iter().for_each(|(vm, fetch)| self.fetch(gateway, vm, &fetch));
        }
        if self.options.reruns {
            self.look_for_stuck();
        }
        self.foresee(self.now.saturating_add(self.options.tick), Happening::Tick);
    }

    /// A worker's call goes out.
    fn fetch(&mut self, gateway: usize, vm: Vm, fetch: &Fetch) {
        let Purpose::Scrape(scrape) = fetch.purpose else {
            // Envoy's own listener is next door.
            let clusters = self.clusters().to_string();
            if let Some(home) = self.gateways.get_mut(gateway) {
                home.told_hosts(vm, clusters.as_bytes(), self.now);
            }
            return;
        };
        let until = self.now.saturating_add(fetch.timeout);
        let asked = Asked { gateway, vm, scrape, until };
        if self.scrape_random.uniform() < self.options.scrape_loss {
            self.foresee(until, Happening::Told(Box::new((asked, ScrapeAnswer::Nothing))));
        } else {
            self.after_network(Happening::Asked(Box::new(asked)));
        }
    }

    /// What Envoy's admin listener says of its clusters.
    fn clusters(&self) -> Value {
        let fleet = &self.router.config().fleet;
        let is_listed = |i: &&InstanceId| self.servers.get(i.index()).is_some_and(Server::is_listed);
        let host = |i: &InstanceId| {
            let (address, port) = fleet.instance(*i)?.address.rsplit_once(':')?;
            Some(json!({"address": {"socket_address": {"address": address, "port_value": port.parse::<u16>().ok()?}}}))
        };
        let clusters = fleet.pools.iter().map(|pool| {
            let hosts: Vec<Value> = pool.instances.iter().filter(is_listed).filter_map(host).collect();
            json!({"name": pool.cluster, "host_statuses": hosts})
        });
        json!({"cluster_statuses": clusters.collect::<Vec<_>>()})
    }

    pub(super) fn asked(&mut self, asked: Asked) {
        let instance = asked.scrape.instance;
        self.advance(instance);
        match self.servers.get(instance.index()).map(Server::scraped) {
            Some(Ok(Some(load))) => self.after_network(Happening::Told(Box::new((asked, ScrapeAnswer::Page(load))))),
            Some(Ok(None)) => self.foresee(asked.until, Happening::Told(Box::new((asked, ScrapeAnswer::Nothing)))),
            Some(Err(_)) | None => self.after_network(Happening::Told(Box::new((asked, ScrapeAnswer::NobodyThere)))),
        }
    }

    pub(super) fn told(&mut self, asked: &Asked, answer: ScrapeAnswer) {
        if let Some(gateway) = self.gateways.get_mut(asked.gateway) {
            gateway.reported(asked.vm, &asked.scrape, answer);
        }
    }

    // === faults ===

    pub(super) fn fail(&mut self, index: usize) {
        let Some(fault) = self.faults.get(index).map(|f| f.fault) else { return };
        let now = self.now;
        match fault {
            Fault::Kill { instance } => {
                self.advance(instance);
                if let Some(server) = self.servers.get_mut(instance.index()) {
                    server.kill(now);
                }
                self.felt_by_neighbours(instance);
                self.break_off(instance);
            }
            Fault::Start { instance } => {
                // A hung instance is killed by it: its streams are cut.
                if self.servers.get(instance.index()).is_some_and(|s| s.health() == Health::Hung) {
                    self.break_off(instance);
                }
                if let Some(server) = self.servers.get_mut(instance.index()) {
                    server.start(now);
                }
                self.felt_by_neighbours(instance);
                self.slow_down(instance);
            }
            Fault::Hang { instance } => {
                self.advance(instance);
                if let Some(server) = self.servers.get_mut(instance.index()) {
                    server.hang(now);
                }
                self.felt_by_neighbours(instance);
            }
            Fault::Reporting { instance, as_ } => {
                let some = |i: &InstanceId| instance.is_none_or(|instance| instance == *i);
                for i in (0..self.servers.len()).map(InstanceId::new).filter(some) {
                    self.advance(i);
                    if let Some(server) = self.servers.get_mut(i.index()) {
                        server.report_as(as_);
                    }
                }
            }
            Fault::Answering { instance, as_ } => {
                let all = self.servers.iter_mut().enumerate();
                all.filter(|(i, _)| instance.is_none_or(|instance| instance.index() == *i))
                    .for_each(|(_, s)| s.answer_as(as_));
            }
            Fault::Listing { instance, is_listed } => {
                if let Some(server) = self.servers.get_mut(instance.index()) {
                    server.list(is_listed);
                }
            }
            Fault::KillWorker { gateway, worker } => {
                let mut lost = self.open_where(|f| f.gateway == gateway && f.worker == worker);
                lost.extend(self.gateways.get_mut(gateway).map(|home| home.disband(worker)).unwrap_or_default());
                for index in lost {
                    self.end(index, End::GatewayDied);
                }
                if let Some(gateway) = self.gateways.get_mut(gateway) {
                    gateway.replace_worker(worker, now);
                }
            }
            Fault::RestartGateway { gateway } => {
                let mut lost = self.open_where(|f| f.gateway == gateway);
                lost.extend(self.undecided(gateway));
                if let Some(gateway) = self.gateways.get_mut(gateway) {
                    (0..self.options.workers).for_each(|worker| drop(gateway.disband(worker)));
                }
                for index in lost {
                    self.end(index, End::GatewayDied);
                }
                if let Some(gateway) = self.gateways.get_mut(gateway) {
                    gateway.restart(now);
                }
            }
        }
    }

    /// The connections to an instance break off.
    fn break_off(&mut self, instance: InstanceId) {
        for index in self.open_where(|f| f.reached && f.target() == Some(instance)) {
            let attempt = self.flight(index).map_or(0, |f| f.attempt);
            self.after_network(Happening::Hear { flight: index, attempt, news: News::Lost });
        }
        self.break_calls_off(instance);
    }

    pub(super) fn open_where(&self, wanted: impl Fn(&Flight) -> bool) -> Vec<usize> {
        let is_wanted = |i: &&usize| self.flights.get(**i).and_then(Option::as_ref).is_some_and(&wanted);
        self.open.iter().filter(is_wanted).copied().collect()
    }

    /// A client scores an answer, at another worker than the one that has served it where there is one.
    fn score(&mut self, index: usize, gateway: usize, worker: usize) {
        let Some(outcome) = self.outcomes.get(index).filter(|outcome| outcome.is_answered()) else { return };
        let template = self.workload.templates.get(outcome.template);
        let quality = template.zip(outcome.model).and_then(|(template, model)| template.quality.get(model.index()));
        let other = worker.saturating_add(1).checked_rem(self.options.workers).unwrap_or(worker);
        if let (Some(score), Some(home)) = (quality, self.gateways.get_mut(gateway)) {
            home.score(other, index, *score, self.now);
        }
    }

    /// A whole answer of the first attempt teaches its worker.
    pub(super) fn learn(&mut self, index: usize, gateway: usize, worker: usize) {
        if self.options.feedback {
            self.score(index, gateway, worker);
        }
        let Some(gateway) = self.gateways.get_mut(gateway) else { return };
        let keeps = self.options.keep_decisions;
        let Some(outcome) = self.outcomes.get_mut(index) else { return };
        let kept = if keeps { None } else { outcome.decision.take() };
        let outcome = &*outcome;
        if !outcome.is_answered() || outcome.attempts != 1 || outcome.reruns > 0 {
            return;
        }
        let is_whole = self.workload.arrivals.get(index).is_some_and(|arrival| arrival.manner.whole);
        let decision = kept.as_ref().or(outcome.decision.as_ref());
        let ttft = outcome.ttft.map(|ttft| ttft.as_secs_f64());
        if let (Some(decision), Some(e2e)) = (decision.filter(|_| ttft.is_some() || is_whole), outcome.e2e) {
            let output_tokens = u64::from(outcome.output_tokens);
            let timing = AnswerTiming { ttft_seconds: ttft, e2e_seconds: e2e.as_secs_f64(), output_tokens };
            gateway.learn(worker, decision, &timing);
        }
    }

    pub(super) fn has_healthy_peer(&self, index: usize) -> bool {
        let fleet = &self.router.config().fleet;
        let Some(outcome) = self.outcomes.get(index) else { return false };
        let pool = outcome.instance.and_then(|i| fleet.instance(i)).map(|instance| instance.pool);
        let in_pool = |i: usize| fleet.instances.get(i).map(|instance| instance.pool) == pool;
        self.servers.iter().enumerate().any(|(i, s)| in_pool(i) && s.worked_since(outcome.at))
    }
}
