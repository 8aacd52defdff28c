//! Shared records: whatever bytes are there, what is read of them is written and read again as it was, and is no larger.

use std::cell::OnceCell;
use std::time::Duration;

use routebalance_core::config::Config;
use routebalance_core::discovery::INSTANCES_MAX;
use routebalance_core::fleet::{InstanceId, ModelId, PoolId};
use routebalance_core::learning::beliefs::Beliefs;
use routebalance_core::learning::lengths::Lengths;
use routebalance_core::learning::speed::Speeds;
use routebalance_core::reckoning::Counters;
use routebalance_core::shared::{self, Index, Journal, JournalReader, Recent, Responses, Slots, Subjects};

use crate::choices::Choices;
use crate::material::CONFIGURATIONS;
use crate::novelty::{magnitude, see};

struct Fixture {
    config: Config,
    index: Index,
    prices: u64,
}

thread_local! {
    static FIXTURE: OnceCell<Fixture> = const { OnceCell::new() };
}

/// The identity of the records that have one.
const IDENTITY: u64 = 7;
/// The version of all records, with which each begins.
const VERSION: u8 = 4;

/// Bytes that begin as a record does, most often.
fn record(choices: &mut Choices<'_>, fingerprint: u64) -> Vec<u8> {
    let is_headed = !choices.in_256(20);
    let mut bytes = if is_headed { [&[VERSION][..], &fingerprint.to_le_bytes()].concat() } else { Vec::new() };
    let small = choices.in_256(128);
    while !choices.is_over() && bytes.len() < 4_096 {
        match choices.byte() {
            0..=99 => bytes.extend(u32::from(choices.byte()).to_le_bytes()),
            100..=139 => bytes.extend(u64::from(choices.byte()).to_le_bytes()),
            140..=169 => bytes.extend((f32::from(choices.byte()) / 16.0).to_le_bytes()),
            170..=189 => bytes.extend(choices.number().to_le_bytes()),
            190..=199 => bytes.extend([0xff; 8]),
            200..=219 if small => bytes.extend(b"\x0a\x00\x00\x0010.0.0.1:1"),
            _ => bytes.extend(choices.raw(32)),
        }
    }
    bytes
}

/// `again` writes what it reads: the same comes back, and nothing grows.
fn stays(name: &str, bytes: &[u8], again: impl Fn(&[u8]) -> Vec<u8>) {
    let once = again(bytes);
    see((name, magnitude(once.len() as u64)));
    assert_eq!(again(&once), once, "{name} from {bytes:?}");
    assert!(once.len() <= bytes.len().max(64), "{name}: {} bytes become {}", bytes.len(), once.len());
}

/// A record of any kind.
pub fn records(data: &[u8]) {
    FIXTURE.with(|fixture| {
        let fixture = fixture.get_or_init(|| {
            let config = Config::parse(CONFIGURATIONS[1]).unwrap_or_else(|problem| panic!("{problem}"));
            let index = Index::from_fleet(&config.fleet);
            let prices = shared::prices_fingerprint(&config.fleet, &config.policies);
            Fixture { config, index, prices }
        });
        let mut choices = Choices::new(data);
        match choices.byte() % 12 {
            0 => {
                let bytes = record(&mut choices, 0);
                stays("slots", &bytes, |bytes| Slots::decode(bytes).encode());
                check_slots(&mut Slots::decode(&bytes));
            }
            1 => {
                stays("health", &record(&mut choices, 0), |bytes| shared::encode_health(&shared::decode_health(bytes)))
            }
            2 => loads(&mut choices, fixture),
            3 => roster(&mut choices, fixture),
            4 => {
                let bytes = record(&mut choices, IDENTITY);
                stays("shown", &bytes, |bytes| {
                    shared::encode_shown(IDENTITY, shared::decode_shown(bytes, IDENTITY).iter().map(String::as_str))
                });
            }
            5 => {
                let of = (&fixture.config.fleet, &fixture.config.policies);
                let bytes = record(&mut choices, fixture.prices);
                if let Some(prices) = shared::decode_prices(&bytes, of.0, of.1, fixture.prices) {
                    let once = shared::encode_prices(&prices, fixture.prices);
                    let again = shared::decode_prices(&once, of.0, of.1, fixture.prices).expect("what was written");
                    assert_eq!(shared::encode_prices(&again, fixture.prices), once);
                    see("prices");
                }
            }
            6 => stays("responses", &record(&mut choices, 0), |bytes| Responses::decode(bytes).encode()),
            7 => placements(&mut choices, fixture),
            8..=10 => learnt(&mut choices, fixture),
            _ => {
                let subjects = Subjects::beliefs(&fixture.config.fleet, 8);
                let mut recent = Recent::decode(record(&mut choices, 0));
                if let Some(decision) = recent.score("x", &subjects) {
                    assert!((0.0..=1.0).contains(&decision.quality) && (0.0..=1.0).contains(&decision.propensity));
                }
                assert!(recent.bytes().len() <= 1_100, "{} bytes", recent.bytes().len());
                stays("recent", recent.bytes(), |bytes| Recent::decode(bytes.to_vec()).bytes().to_vec());
            }
        }
    });
}

/// Whatever the claims are, a VM finds its place among them.
fn check_slots(slots: &mut Slots) {
    let now = Duration::from_secs(1_000);
    let slot = slots.keep(5, 9, now);
    assert!(slots.in_use() <= shared::MAX_SLOTS && slots.places().len() <= shared::MAX_PLACES);
    assert_eq!(slot.is_some(), slots.slot_of(5).is_some());
    let place = slots.settle(9, (now, now), now);
    if let Some(place) = place {
        assert!(slots.places()[place].is_there(now));
        slots.lead(5, place, now, Duration::from_secs(1));
    }
    slots.leave(5, 9);
    assert_eq!(slots.slot_of(5), None);
}

fn loads(choices: &mut Choices<'_>, fixture: &Fixture) {
    let index = &fixture.index;
    match choices.byte() % 3 {
        0 => {
            let mut bytes = record(choices, 0);
            // Rows of instances that are there.
            for (i, at) in (17..bytes.len()).step_by(60).enumerate() {
                let key = index.key(InstanceId::new(i % index.len())).unwrap_or_default().to_le_bytes();
                bytes.iter_mut().skip(at).zip(key).for_each(|(byte, new)| *byte = new);
            }
            let owner = bytes.get(9..17).map_or(0, |owner| u64::from_le_bytes(owner.try_into().unwrap_or_default()));
            let mut sum = Counters::new(index.len());
            let has = shared::add_counters(&bytes, owner, index, &mut sum);
            assert_eq!(sum.0.len(), index.len());
            let back = shared::encode_counters(&sum, owner, index);
            let mut again = Counters::new(index.len());
            assert!(shared::add_counters(&back, owner, index, &mut again));
            assert_eq!(again, sum);
            see(("counters", has));
        }
        1 => {
            let bytes = record(choices, IDENTITY);
            let Some((reports, sources)) = shared::decode_reports(&bytes, IDENTITY, index) else { return };
            assert_eq!(reports.0.len(), index.len());
            let once = shared::encode_reports(&reports, &sources, index);
            let (again, _) = shared::decode_reports(&once, IDENTITY, index).expect("what was written");
            assert_eq!(again, reports);
            see("reports");
        }
        _ => {
            let bytes = record(choices, 0);
            let glimpses = shared::decode_glimpses(&bytes, index, |_, _| true);
            let once = shared::encode_glimpses(glimpses.iter().map(|(i, glimpse)| (*i, glimpse)), index);
            assert_eq!(shared::decode_glimpses(&once, index, |_, _| true), glimpses);
            assert!(once.len() <= bytes.len().max(64));
            see(("glimpses", glimpses.len()));
        }
    }
}

fn roster(choices: &mut Choices<'_>, fixture: &Fixture) {
    let bytes = record(choices, IDENTITY);
    let Some(roster) = shared::decode_roster(&bytes, IDENTITY) else { return };
    assert!(roster.members.len() <= INSTANCES_MAX);
    let pools = &fixture.config.fleet.pools;
    let once = shared::encode_roster(&roster, pools, IDENTITY);
    assert_eq!(shared::decode_roster(&once, IDENTITY).as_ref(), Some(&roster));
    let mut fleet = fixture.config.fleet.clone();
    routebalance_core::discovery::apply(&mut fleet, &roster);
    let listed: usize = fleet.pools.iter().map(|pool| pool.instances.len()).sum();
    assert!(listed <= fleet.instances.len());
    see(("roster", magnitude(roster.members.len() as u64)));
}

fn placements(choices: &mut Choices<'_>, fixture: &Fixture) {
    let bytes = record(choices, 0);
    let index = &fixture.index;
    let (mut reads, mut reader) = (0, JournalReader::default());
    let news = reader.news(index, |_| {
        reads += 1;
        Some(bytes.clone())
    });
    assert!(reads <= 200, "{reads} segments are read");
    assert!(news.iter().map(|placement| 20 + 8 * placement.keys.len()).sum::<usize>() <= reads * bytes.len());
    let (mut journal, held) = Journal::open(index, |segment| (segment == 0).then(|| bytes.clone()));
    held.into_iter().for_each(|placement| journal.note(index.key(placement.instance).unwrap_or_default(), placement));
    let mut writes = 0;
    journal.write(|_, bytes| {
        writes += 1;
        assert!(bytes.len() <= 300_000);
    });
    see(("placements", news.len(), writes));
}

fn learnt(choices: &mut Choices<'_>, fixture: &Fixture) {
    let (fleet, basis) = (&fixture.config.fleet, fixture.config.latency_estimate);
    let kind = choices.byte() % 3;
    let bytes = record(choices, 0);
    match kind {
        0 => {
            let subjects = Subjects::lengths(fleet, 8);
            stays("lengths", &bytes, |bytes| {
                let (own, foreign) = shared::decode_lengths(bytes, &subjects);
                let mut lengths = Lengths::default();
                lengths.adopt(own);
                assert!(lengths.factor(ModelId::new(0)).is_finite());
                shared::encode_lengths(&lengths, &foreign, &subjects)
            });
        }
        1 => {
            let subjects = Subjects::beliefs(fleet, 8);
            stays("beliefs", &bytes, |bytes| {
                let (own, foreign) = shared::decode_beliefs(bytes, &subjects);
                let mut beliefs = Beliefs::default();
                beliefs.adopt(own);
                let (quality, sd) = beliefs.offsets().revised(ModelId::new(0), Some(1), 0.5, 0.1);
                assert!((0.0..=1.0).contains(&quality) && sd.is_finite());
                shared::encode_beliefs(&beliefs, &foreign, &subjects)
            });
        }
        _ => {
            let subjects = Subjects::speeds(fleet, basis);
            stays("speeds", &bytes, |bytes| {
                let (own, foreign) = shared::decode_speeds(bytes, &subjects);
                let mut speeds = Speeds::default();
                speeds.adopt(own);
                let speed = speeds.speed(PoolId::new(0), basis);
                assert!(speed.ttft_factor.is_finite() && speed.tpot_factor.is_finite());
                shared::encode_speeds(&speeds.own(), &foreign, &subjects)
            });
        }
    }
}
