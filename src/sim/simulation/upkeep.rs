//! Ticks, scrapes and faults of a simulation.

use super::{Answer, Flight, Happening, News, Scrape, Simulation, flight_of};
use crate::learning::speed::Timing;
use crate::shared::SLOT_TTL;
use crate::sim::fault::Fault;
use crate::sim::outcome::End;
use crate::sim::server::{Health, Server};

impl Simulation<'_> {
    pub(super) fn tick(&mut self) {
        let Simulation { servers, flights, gateways, now, .. } = self;
        for (instance, server) in servers.iter().enumerate().filter(|(_, s)| s.health() == Health::Up) {
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
                if let (Some(gateway), Some(dispatch)) = (gateways.get_mut(flight.gateway), flight.dispatch.as_mut()) {
                    gateway.progress(flight.slot, dispatch, u64::from(new));
                }
            }
            gateways.iter_mut().for_each(|gateway| gateway.count_streams(instance));
        }
        let config = self.router.config();
        self.gateways.iter_mut().for_each(|gateway| gateway.tick(config, self.now));
        self.foresee(self.now.saturating_add(self.options.tick), Happening::Tick);
    }

    pub(super) fn scrape(&mut self, gateway: usize, instance: usize) {
        let telemetry = &self.router.config().telemetry;
        let (period, timeout) = (telemetry.scrape_period, telemetry.scrape_timeout);
        let now = self.now;
        let Some(home) = self.gateways.get_mut(gateway) else { return };
        let Some(asking) = home.asking.get_mut(instance) else { return };
        if std::mem::replace(asking, true) {
            return self.foresee(now.saturating_add(self.options.tick), Happening::ScrapeDue { gateway, instance });
        }
        let own = home.counters(home.slot_of(0)).and_then(|all| all.0.get(instance)).copied().unwrap_or_default();
        let scrape = Scrape { gateway, epoch: home.epoch, instance, asked_at: now, own };
        let lost = self.random.uniform() < self.options.scrape_loss;
        if lost {
            self.foresee(now.saturating_add(timeout), Happening::Told(Box::new((scrape, Answer::TimedOut))));
        } else {
            self.after_network(Happening::Asked(Box::new(scrape)));
        }
        self.foresee(now.saturating_add(period), Happening::ScrapeDue { gateway, instance });
    }

    pub(super) fn asked(&mut self, scrape: Scrape) {
        self.advance(scrape.instance);
        let answer = self.servers.get(scrape.instance).map(Server::scraped);
        match answer {
            Some(Ok(Some(load))) => self.after_network(Happening::Told(Box::new((scrape, Answer::Page(load))))),
            Some(Ok(None)) => {
                let timeout = self.router.config().telemetry.scrape_timeout;
                self.foresee(
                    scrape.asked_at.saturating_add(timeout),
                    Happening::Told(Box::new((scrape, Answer::TimedOut))),
                );
            }
            Some(Err(_)) | None => self.after_network(Happening::Told(Box::new((scrape, Answer::NobodyThere)))),
        }
    }

    pub(super) fn told(&mut self, scrape: Scrape, answer: Answer) {
        let Some(gateway) = self.gateways.get_mut(scrape.gateway).filter(|g| g.epoch == scrape.epoch) else { return };
        if let Some(asking) = gateway.asking.get_mut(scrape.instance) {
            *asking = false;
        }
        if let Some(report) = gateway.reports.0.get_mut(scrape.instance) {
            match answer {
                Answer::Page(load) => report.answered(scrape.asked_at, load, scrape.own),
                Answer::NobodyThere => report.nobody_there(),
                Answer::TimedOut => {}
            }
        }
    }

    // === faults ===

    pub(super) fn fail(&mut self, index: usize) {
        let Some(fault) = self.faults.get(index).map(|f| f.fault) else { return };
        let now = self.now;
        match fault {
            Fault::Kill { instance } => {
                self.advance(instance);
                if let Some(server) = self.servers.get_mut(instance) {
                    server.kill(now);
                }
                self.felt_by_neighbours(instance);
                for index in self.open_where(|f| f.reached && f.target() == Some(instance)) {
                    let attempt = self.flight(index).map_or(0, |f| f.attempt);
                    self.after_network(Happening::Hear { flight: index, attempt, news: News::Lost });
                }
            }
            Fault::Start { instance } => {
                // A hung instance is killed by it: its streams are cut.
                if self.servers.get(instance).is_some_and(|s| s.health() == Health::Hung) {
                    for index in self.open_where(|f| f.reached && f.target() == Some(instance)) {
                        let attempt = self.flight(index).map_or(0, |f| f.attempt);
                        self.after_network(Happening::Hear { flight: index, attempt, news: News::Lost });
                    }
                }
                if let Some(server) = self.servers.get_mut(instance) {
                    server.start(now);
                }
                self.felt_by_neighbours(instance);
                self.slow_down(instance);
            }
            Fault::Hang { instance } => {
                self.advance(instance);
                if let Some(server) = self.servers.get_mut(instance) {
                    server.hang(now);
                }
                self.felt_by_neighbours(instance);
            }
            Fault::Reporting { instance, as_ } => {
                let some = |i: &usize| instance.is_none_or(|instance| instance == *i);
                for i in (0..self.servers.len()).filter(some) {
                    self.advance(i);
                    if let Some(server) = self.servers.get_mut(i) {
                        server.report_as(as_);
                    }
                }
            }
            Fault::KillWorker { gateway, worker } => {
                let Some(home) = self.gateways.get_mut(gateway) else { return };
                let epoch = home.epoch;
                let Some(slot) = home.replace_worker(worker) else { return };
                for index in self.open_where(|f| f.gateway == gateway && f.slot == slot) {
                    self.end(index, End::GatewayDied);
                }
                self.foresee(self.now.saturating_add(SLOT_TTL), Happening::Retire { gateway, epoch, slot });
            }
            Fault::RestartGateway { gateway } => {
                let mut lost = self.open_where(|f| f.gateway == gateway);
                lost.extend(self.undecided(gateway));
                for index in lost {
                    self.end(index, End::GatewayDied);
                }
                if let Some(gateway) = self.gateways.get_mut(gateway) {
                    gateway.restart();
                }
            }
        }
    }

    pub(super) fn open_where(&self, wanted: impl Fn(&Flight) -> bool) -> Vec<usize> {
        let is_wanted = |i: &&usize| self.flights.get(**i).and_then(Option::as_ref).is_some_and(&wanted);
        self.open.iter().filter(is_wanted).copied().collect()
    }

    /// A whole answer of the first attempt teaches its gateway.
    pub(super) fn learn(&mut self, index: usize, gateway: usize, epoch: u32) {
        let Some(gateway) = self.gateways.get_mut(gateway).filter(|g| g.epoch == epoch) else { return };
        let keeps = self.options.keep_decisions;
        let Some(outcome) = self.outcomes.get_mut(index) else { return };
        let kept = if keeps { None } else { outcome.decision.take() };
        let outcome = &*outcome;
        if !outcome.is_answered() || outcome.attempts != 1 {
            return;
        }
        let decision = kept.as_ref().or(outcome.decision.as_ref());
        if let (Some(decision), Some(ttft), Some(e2e)) = (decision, outcome.ttft, outcome.e2e) {
            let output_tokens = u64::from(outcome.output_tokens);
            let timing = Timing { ttft: Some(ttft.as_secs_f64()), e2e: e2e.as_secs_f64(), output_tokens };
            gateway.learn(self.router.config(), decision, &timing);
        }
    }

    pub(super) fn has_healthy_peer(&self, index: usize) -> bool {
        let fleet = &self.router.config().fleet;
        let Some(outcome) = self.outcomes.get(index) else { return false };
        let pool = outcome.instance.and_then(|i| fleet.instances.get(i)).map(|instance| instance.pool);
        let in_pool = |i: usize| fleet.instances.get(i).map(|instance| instance.pool) == pool;
        self.servers.iter().enumerate().any(|(i, s)| in_pool(i) && s.worked_since(outcome.at))
    }
}
