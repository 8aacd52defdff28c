//! The board: where workers leave records for each other.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::{
    ForeignSpeeds, Index, RowsRead, Slots, Sources, Subjects, Unwritten, VERSION, decode_health, decode_reports,
    decode_speeds, encode_counters, encode_counters_row, encode_health, encode_report_row, encode_reports,
    encode_speeds,
};
use crate::fleet::InstanceId;
use crate::health::Records;
use crate::learning::speed::{SpeedTallies, Speeds};
use crate::reckoning::{Counters, Reports};

/// What a record is about; the version of its form is part of its key, so that modules of two versions never meet.
///
/// A *slot* belongs to one VM, a *place* to one configuration: [`Slots`] says to which, and what is written there says so, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// Nothing but a version, which changes with every write of an announced record ([`Key::is_announced`]): one look tells that there is
    /// nothing to look at.
    Pulse,
    /// Which VM owns which slot, and which configuration which place ([`Slots`]); written by compare-and-swap.
    Slots,
    /// The instances that something speaks against ([`Records`]); written by compare-and-swap.
    Health,
    /// The last reports that a configuration's leader has fetched; written by it.
    Reports(usize),
    /// The roster of a configuration ([`crate::discovery::Roster`]); written by its leader, by compare-and-swap.
    Roster(usize),
    /// What statistics a configuration shows; written by its leader.
    Shown(usize),
    /// Prices that follow demand, of a configuration; written by its leader, by compare-and-swap.
    Prices(usize),
    /// A worker's counters, or the head of its rows; written by the slot's owner, and by whoever finds it dead.
    Counters(usize),
    /// A worker's counters of the instance in this place of its fleet, where that is large; written by the slot's owner.
    CountersRow(usize, u32),
    /// A configuration's report of the instance in this place of its fleet, where that is large; written by its leader.
    ReportRow(usize, u32),
    /// The loads that a worker has seen in response headers; written by the slot's owner.
    Glimpses(usize),
    /// The responses that a worker has seen created; written by the slot's owner.
    Responses(usize),
    /// One segment of what a worker has placed where; written by the slot's owner.
    Placements(usize, usize),
    /// What a worker has learnt of lengths; written by the slot's owner.
    Lengths(usize),
    /// What a worker has learnt of speed; written by the slot's owner.
    Speeds(usize),
    /// What a worker has learnt from feedback; written by the slot's owner.
    Beliefs(usize),
    /// One segment of a worker's recent decisions. The slot's owner adds decisions and any VM marks one as scored: by
    /// compare-and-swap, both.
    Recent(usize, usize),
}

impl Key {
    /// Whether a write of the record changes the pulse. Those that every request, scrape or heartbeat writes do not: the pulse would
    /// never rest.
    pub fn is_announced(self) -> bool {
        match self {
            Key::Health | Key::Roster(_) | Key::Shown(_) | Key::Prices(_) => true,
            Key::Glimpses(_) | Key::Placements(..) | Key::Lengths(_) | Key::Speeds(_) | Key::Beliefs(_) => true,
            Key::Pulse | Key::Slots | Key::Reports(_) | Key::ReportRow(..) => false,
            Key::Counters(_) | Key::CountersRow(..) | Key::Responses(_) | Key::Recent(..) => false,
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "routebalance.{VERSION}.")?;
        match self {
            Key::Pulse => f.write_str("pulse"),
            Key::Slots => f.write_str("slots"),
            Key::Health => f.write_str("health"),
            Key::Reports(place) => write!(f, "reports.{place}"),
            Key::Roster(place) => write!(f, "roster.{place}"),
            Key::Shown(place) => write!(f, "shown.{place}"),
            Key::Prices(place) => write!(f, "prices.{place}"),
            Key::Counters(slot) => write!(f, "counters.{slot}"),
            Key::CountersRow(slot, row) => write!(f, "counters.{slot}.{row}"),
            Key::ReportRow(place, row) => write!(f, "reports.{place}.{row}"),
            Key::Glimpses(slot) => write!(f, "glimpses.{slot}"),
            Key::Responses(slot) => write!(f, "responses.{slot}"),
            Key::Placements(slot, segment) => write!(f, "placements.{slot}.{segment}"),
            Key::Lengths(slot) => write!(f, "lengths.{slot}"),
            Key::Speeds(slot) => write!(f, "speeds.{slot}"),
            Key::Beliefs(slot) => write!(f, "beliefs.{slot}"),
            Key::Recent(slot, segment) => write!(f, "recent.{slot}.{segment}"),
        }
    }
}

/// The version of a record: it changes with every write.
pub type Version = u32;

/// What was learnt of speed: of pools that a configuration has, and of others.
pub type Learnt<'a> = (Cow<'a, SpeedTallies>, Cow<'a, ForeignSpeeds>);

/// Where workers leave records for each other: Envoy's shared data, or memory.
///
/// Records that every decision reads have methods of their own, so that a board need not keep them as bytes.
pub trait Board {
    /// A record's bytes and version; `None` where there is none.
    fn read(&self, key: Key) -> (Option<Vec<u8>>, Option<Version>);

    /// Writes a record. With a version, only if that is still the record's; whether it was written.
    fn write(&mut self, key: Key, bytes: &[u8], version: Option<Version>) -> bool;

    /// A record's bytes and version, unless that is the version which was seen last; a board that can tell without copying does.
    fn news(&self, key: Key, seen: Option<Version>) -> Option<(Option<Vec<u8>>, Option<Version>)> {
        Some(self.read(key)).filter(|(_, version)| *version != seen)
    }

    /// Who is there.
    fn slots(&self) -> (Slots, Option<Version>) {
        let (bytes, version) = self.read(Key::Slots);
        (bytes.map(|bytes| Slots::decode(&bytes)).unwrap_or_default(), version)
    }

    /// Who is there, unless that is the version which was seen last.
    fn slots_news(&self, seen: Option<Version>) -> Option<(Slots, Option<Version>)> {
        let (bytes, version) = self.news(Key::Slots, seen)?;
        Some((bytes.map(|bytes| Slots::decode(&bytes)).unwrap_or_default(), version))
    }

    /// Writes who is there, if nobody else has since.
    fn write_slots(&mut self, slots: &Slots, version: Option<Version>) -> bool {
        self.write(Key::Slots, &slots.encode(), version)
    }

    /// Adds a worker's counters to a sum, if they are this owner's; whether there were any.
    fn add_counters(&self, slot: usize, owner: u64, index: &Index, sum: &mut Counters) -> bool {
        let Some(bytes) = self.read(Key::Counters(slot)).0 else { return false };
        let row = |row| self.read(Key::CountersRow(slot, row)).0;
        RowsRead::default().add_counters((slot, owner, &bytes), index, sum, row)
    }

    /// Writes a worker's counters as this owner's.
    fn write_counters(&mut self, slot: usize, owner: u64, counters: &Counters, index: &Index) -> bool {
        self.write(Key::Counters(slot), &encode_counters(counters, owner, index), None)
    }

    /// Writes what is to be written of a large fleet's counters.
    fn write_counters_rows(
        &mut self,
        slot: usize,
        owner: u64,
        counters: &Counters,
        index: &Index,
        (unwritten, now): (&mut Unwritten, Duration),
    ) -> bool {
        let is_written = unwritten.write_rows(now, |i| {
            let Some((key, row)) = index.key(i).zip(counters.get(i)) else { return true };
            self.write(Key::CountersRow(slot, row_of(i)), &encode_counters_row(row, key, owner), None)
        });
        is_written && self.write(Key::Counters(slot), &unwritten.counters_head(owner, index.len()), None)
    }

    /// The reports of a place; `None` where they are not this configuration's.
    fn reports(&self, place: usize, identity: u64, index: &Index) -> Option<(Arc<Reports>, Sources)> {
        let bytes = self.read(Key::Reports(place)).0?;
        let row = |row| self.read(Key::ReportRow(place, row)).0;
        RowsRead::default().reports((place, identity, &bytes), index, row)
    }

    /// Writes the reports of a place.
    fn write_reports(&mut self, place: usize, reports: &Reports, sources: &Sources, index: &Index) -> bool {
        self.write(Key::Reports(place), &encode_reports(reports, sources, index), None)
    }

    /// Writes what is to be written of a large fleet's reports, as this worker.
    fn write_report_rows(
        &mut self,
        (place, owner): (usize, u64),
        reports: &Reports,
        sources: &Sources,
        index: &Index,
        (unwritten, now): (&mut Unwritten, Duration),
    ) -> bool {
        let is_written = unwritten.write_rows(now, |i| {
            let Some((key, row)) = index.key(i).zip(reports.get(i)) else { return true };
            self.write(Key::ReportRow(place, row_of(i)), &encode_report_row(row, key, sources.identity), None)
        });
        is_written && self.write(Key::Reports(place), &unwritten.reports_head(owner, sources, index.len()), None)
    }

    /// What a worker has learnt of the speed of these subjects, and what it keeps of others; unless that is the version which was seen
    /// last.
    fn speeds_news(
        &self,
        slot: usize,
        subjects: &Subjects,
        seen: Option<Version>,
    ) -> Option<(Learnt<'_>, Option<Version>)> {
        let (bytes, version) = self.news(Key::Speeds(slot), seen)?;
        Some((decoded(bytes, subjects), version))
    }

    /// Writes what a worker has learnt of speed.
    fn write_speeds(&mut self, slot: usize, speeds: &Speeds, foreign: &ForeignSpeeds, subjects: &Subjects) -> bool {
        self.write(Key::Speeds(slot), &encode_speeds(&speeds.own(), foreign, subjects), None)
    }

    /// What speaks against instances, and the version of that.
    fn records(&self) -> (Arc<Records>, Option<Version>) {
        let (bytes, version) = self.read(Key::Health);
        (Arc::new(bytes.map(|bytes| decode_health(&bytes)).unwrap_or_default()), version)
    }

    /// Writes what speaks against instances, if nobody else has since.
    fn write_records(&mut self, records: &Records, version: Option<Version>) -> bool {
        self.write(Key::Health, &encode_health(records), version)
    }
}

/// The number of an instance's row.
fn row_of(instance: InstanceId) -> u32 {
    u32::try_from(instance.index()).unwrap_or(u32::MAX)
}

/// A board in memory that keeps every record as bytes, as Envoy does.
#[derive(Clone, Debug, Default)]
pub struct Bytes(BTreeMap<Key, (Vec<u8>, Version)>);

impl Board for Bytes {
    fn read(&self, key: Key) -> (Option<Vec<u8>>, Option<Version>) {
        self.0.get(&key).map(|(bytes, version)| (bytes.clone(), *version)).unzip()
    }

    fn news(&self, key: Key, seen: Option<Version>) -> Option<(Option<Vec<u8>>, Option<Version>)> {
        let record = self.0.get(&key);
        let version = record.map(|(_, version)| *version);
        (version != seen).then(|| (record.map(|(bytes, _)| bytes.clone()), version))
    }

    fn write(&mut self, key: Key, bytes: &[u8], version: Option<Version>) -> bool {
        let (old, at) = self.0.entry(key).or_default();
        if version.is_some_and(|version| version != *at) {
            return false;
        }
        old.clear();
        old.extend_from_slice(bytes);
        *at = at.wrapping_add(1);
        true
    }
}

/// The records that every decision reads, as they are, and all others as bytes: what a simulation needs.
#[derive(Clone, Debug, Default)]
pub struct MemoryBoard {
    bytes: Bytes,
    slots: (Slots, Version),
    records: (Arc<Records>, Version),
    counters: Vec<Option<Counted>>,
    reports: Vec<Option<(Arc<Reports>, Sources, Index)>>,
    speeds: Vec<Option<Taught>>,
}

#[derive(Clone, Debug)]
struct Counted {
    owner: u64,
    counters: Counters,
    index: Index,
}

#[derive(Clone, Debug)]
struct Taught {
    tallies: SpeedTallies,
    foreign: ForeignSpeeds,
    version: Version,
    subjects: Subjects,
}

/// What was learnt of speed, from bytes.
fn decoded<'a>(bytes: Option<Vec<u8>>, subjects: &Subjects) -> Learnt<'a> {
    let (tallies, foreign) = decode_speeds(&bytes.unwrap_or_default(), subjects);
    (Cow::Owned(tallies), Cow::Owned(foreign))
}

/// A version that exists: a record that was never written has none.
fn existing(version: Version) -> Option<Version> {
    (version > 0).then_some(version)
}

/// Writes a record if this is its version still; whether it was.
fn replace<T: Clone>(record: &mut (T, Version), new: &T, version: Option<Version>) -> bool {
    let is_last = version.is_none_or(|version| version == record.1);
    if is_last {
        *record = (new.clone(), record.1.wrapping_add(1));
    }
    is_last
}

/// A place of a list that grows as far as it is used.
fn place_in<T>(list: &mut Vec<Option<T>>, place: usize) -> Option<&mut Option<T>> {
    if list.len() <= place {
        list.resize_with(place.saturating_add(1), || None);
    }
    list.get_mut(place)
}

impl Board for MemoryBoard {
    fn read(&self, key: Key) -> (Option<Vec<u8>>, Option<Version>) {
        self.bytes.read(key)
    }

    fn news(&self, key: Key, seen: Option<Version>) -> Option<(Option<Vec<u8>>, Option<Version>)> {
        self.bytes.news(key, seen)
    }

    fn write(&mut self, key: Key, bytes: &[u8], version: Option<Version>) -> bool {
        self.bytes.write(key, bytes, version)
    }

    fn slots(&self) -> (Slots, Option<Version>) {
        (self.slots.0.clone(), existing(self.slots.1))
    }

    fn slots_news(&self, seen: Option<Version>) -> Option<(Slots, Option<Version>)> {
        (existing(self.slots.1) != seen).then(|| self.slots())
    }

    fn write_slots(&mut self, slots: &Slots, version: Option<Version>) -> bool {
        replace(&mut self.slots, slots, version)
    }

    fn add_counters(&self, slot: usize, owner: u64, index: &Index, sum: &mut Counters) -> bool {
        let Some(Some(counted)) = self.counters.get(slot).filter(|c| c.as_ref().is_some_and(|c| c.owner == owner))
        else {
            return false;
        };
        if counted.index == *index {
            sum.add(&counted.counters);
            return true;
        }
        for (row, counters) in counted.counters.0.iter().enumerate() {
            let key = counted.index.key(InstanceId::new(row));
            let at = key.and_then(|key| index.find(key, row));
            if let Some(sum) = at.and_then(|at| sum.get_mut(at)) {
                sum.add(counters);
            }
        }
        true
    }

    fn write_counters(&mut self, slot: usize, owner: u64, counters: &Counters, index: &Index) -> bool {
        match place_in(&mut self.counters, slot) {
            Some(Some(counted)) if counted.index == *index => {
                counted.owner = owner;
                counted.counters.0.clone_from(&counters.0);
            }
            Some(place) => *place = Some(Counted { owner, counters: counters.clone(), index: index.clone() }),
            None => return false,
        }
        true
    }

    fn write_counters_rows(
        &mut self,
        slot: usize,
        owner: u64,
        counters: &Counters,
        index: &Index,
        (unwritten, now): (&mut Unwritten, Duration),
    ) -> bool {
        unwritten.write_rows(now, |_| true);
        self.write_counters(slot, owner, counters, index)
    }

    fn write_report_rows(
        &mut self,
        (place, _): (usize, u64),
        reports: &Reports,
        sources: &Sources,
        index: &Index,
        (unwritten, now): (&mut Unwritten, Duration),
    ) -> bool {
        unwritten.write_rows(now, |_| true);
        self.write_reports(place, reports, sources, index)
    }

    fn reports(&self, place: usize, identity: u64, index: &Index) -> Option<(Arc<Reports>, Sources)> {
        let (reports, sources, of) = self.reports.get(place)?.as_ref()?;
        if sources.identity != identity {
            return None;
        }
        if of == index {
            return Some((reports.clone(), sources.clone()));
        }
        let (reports, sources) = decode_reports(&encode_reports(reports, sources, of), identity, index)?;
        Some((Arc::new(reports), sources))
    }

    fn write_reports(&mut self, place: usize, reports: &Reports, sources: &Sources, index: &Index) -> bool {
        match place_in(&mut self.reports, place) {
            Some(Some((old, of, at))) if at == index => {
                Arc::make_mut(old).0.clone_from(&reports.0);
                of.clone_from(sources);
            }
            Some(place) => *place = Some((Arc::new(reports.clone()), sources.clone(), index.clone())),
            None => return false,
        }
        true
    }

    fn speeds_news(
        &self,
        slot: usize,
        subjects: &Subjects,
        seen: Option<Version>,
    ) -> Option<(Learnt<'_>, Option<Version>)> {
        let record = self.speeds.get(slot).and_then(Option::as_ref);
        let version = record.map(|record| record.version);
        (version != seen).then(|| {
            let learnt = match record {
                Some(Taught { tallies, foreign, subjects: of, .. }) if of == subjects => {
                    (Cow::Borrowed(tallies), Cow::Borrowed(foreign))
                }
                record => decoded(record.map(|r| encode_speeds(&r.tallies, &r.foreign, &r.subjects)), subjects),
            };
            (learnt, version)
        })
    }

    fn write_speeds(&mut self, slot: usize, speeds: &Speeds, foreign: &ForeignSpeeds, subjects: &Subjects) -> bool {
        let Some(place) = place_in(&mut self.speeds, slot) else { return false };
        match place {
            Some(taught) if taught.subjects == *subjects && taught.foreign == *foreign => {
                speeds.write(&mut taught.tallies);
                taught.version = taught.version.wrapping_add(1);
            }
            _ => {
                let version = place.as_ref().map_or(0, |taught| taught.version).wrapping_add(1);
                let (tallies, foreign) = (speeds.own(), foreign.clone());
                *place = Some(Taught { tallies, foreign, version, subjects: subjects.clone() });
            }
        }
        true
    }

    fn records(&self) -> (Arc<Records>, Option<Version>) {
        (self.records.0.clone(), existing(self.records.1))
    }

    fn write_records(&mut self, records: &Records, version: Option<Version>) -> bool {
        replace(&mut self.records, &Arc::new(records.clone()), version)
    }
}
