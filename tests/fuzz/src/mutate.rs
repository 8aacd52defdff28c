//! New inputs from old ones.

use routebalance_core::random::Random;

use crate::material::WORDS;

/// An input that is like those of the corpus, of at most so many bytes.
pub fn mutated(corpus: &[Vec<u8>], longest: usize, random: &mut Random) -> Vec<u8> {
    let any = |random: &mut Random| corpus.get(random.below(corpus.len())).cloned().unwrap_or_default();
    let mut input = match random.below(16) {
        0 => (0..random.below(longest.min(512))).map(|_| random.bits() as u8).collect(),
        1 | 2 => {
            let (mut one, other) = (any(random), any(random));
            one.truncate(random.below(one.len() + 1));
            one.extend_from_slice(&other[random.below(other.len() + 1)..]);
            one
        }
        _ => any(random),
    };
    for _ in 0..1 << random.below(5) {
        havoc(&mut input, corpus, random);
    }
    input.truncate(longest);
    input
}

/// One change.
fn havoc(input: &mut Vec<u8>, corpus: &[Vec<u8>], random: &mut Random) {
    let at = random.below(input.len() + 1);
    let length = 1 << random.below(8);
    let end = (at + 1 + random.below(length)).min(input.len());
    match random.below(12) {
        0..=2 => set(input, at, random.bits() as u8),
        3 => {
            let bit = 1 << random.below(8);
            input.get_mut(at).into_iter().for_each(|byte| *byte ^= bit);
        }
        4 => {
            let by = random.below(33) as u8;
            input.get_mut(at).into_iter().for_each(|byte| *byte = byte.wrapping_add(by).wrapping_sub(16));
        }
        5 => drop(input.drain(at..end.max(at))),
        6 | 7 => {
            let new: Vec<u8> = (0..1 + random.below(12)).map(|_| random.bits() as u8).collect();
            drop(input.splice(at..at, new));
        }
        8 => {
            let again = input[at..end.max(at)].to_vec();
            let to = random.below(input.len() + 1);
            drop(input.splice(to..to, again));
        }
        9 => drop(input.splice(at..at, WORDS[random.below(WORDS.len())].iter().copied())),
        10 => {
            let Some(other) = corpus.get(random.below(corpus.len())) else { return };
            let from = random.below(other.len() + 1);
            let part = &other[from..(from + random.below(64)).min(other.len())];
            drop(input.splice(at..at, part.iter().copied()));
        }
        _ => {
            for place in at..end {
                set(input, place, [0, 1, 0x7f, 0x80, 0xff][random.below(5)]);
            }
        }
    }
}

fn set(input: &mut [u8], at: usize, to: u8) {
    input.get_mut(at).into_iter().for_each(|byte| *byte = to);
}

/// The smallest input that was found of which something holds, beginning with one of which it does.
pub fn minimised(mut input: Vec<u8>, executions: usize, holds: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let (mut left, mut size) = (executions, input.len().div_ceil(2));
    while size > 0 && left > 0 {
        let mut at = 0;
        while at < input.len() && left > 0 {
            let mut shorter = input.clone();
            shorter.drain(at..(at + size).min(input.len()));
            left -= 1;
            if holds(&shorter) {
                input = shorter;
            } else {
                at += size;
            }
        }
        size /= 2;
    }
    for at in 0..input.len().min(left) {
        let mut simpler = input.clone();
        simpler[at] = 0;
        if holds(&simpler) {
            input = simpler;
        }
    }
    input
}
