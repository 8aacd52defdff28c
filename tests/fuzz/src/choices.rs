//! Bytes as choices: which act comes next, which header, which recording, and where it is cut.

use arbitrary::Unstructured;

use crate::material::WORDS;

/// The choices that an input makes. When it is used up, all are the first one.
pub struct Choices<'a>(Unstructured<'a>);

impl<'a> Choices<'a> {
    /// The choices of an input.
    pub fn new(data: &'a [u8]) -> Choices<'a> {
        Choices(Unstructured::new(data))
    }

    /// Whether there is nothing left to choose.
    pub fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    /// A byte.
    pub fn byte(&mut self) -> u8 {
        self.0.arbitrary().unwrap_or_default()
    }

    /// Eight bytes as a number.
    pub fn number(&mut self) -> u64 {
        self.0.arbitrary().unwrap_or_default()
    }

    /// A number below `n`, which is at most 65,536; 0 if `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        let drawn =
            if n > 256 { self.0.arbitrary::<u16>().unwrap_or_default().into() } else { usize::from(self.byte()) };
        drawn % n.max(1)
    }

    /// True in so many of 256 cases.
    pub fn in_256(&mut self, cases: u8) -> bool {
        self.byte().wrapping_sub(1) < cases
    }

    /// One of several.
    pub fn pick<T: Copy>(&mut self, among: &[T]) -> T {
        among[self.below(among.len())]
    }

    /// The next bytes as they are.
    pub fn raw(&mut self, most: usize) -> Vec<u8> {
        let length = self.below(most + 1).min(self.0.len());
        self.0.bytes(length).unwrap_or_default().to_vec()
    }

    /// All that is left.
    pub fn rest(self) -> &'a [u8] {
        self.0.take_rest()
    }

    /// A recording, as it is or changed; or words, or garbage.
    pub fn bytes_like(&mut self, recordings: &[&[u8]]) -> Vec<u8> {
        match self.byte() {
            0..=143 => self.pick(recordings).to_vec(),
            144..=223 => {
                let mut bytes = self.pick(recordings).to_vec();
                for _ in 0..=self.below(4) {
                    self.change(&mut bytes);
                }
                bytes
            }
            224..=239 => self.raw(64),
            _ => (0..self.below(8)).flat_map(|_| self.pick(WORDS).to_vec()).collect(),
        }
    }

    /// Changes something.
    fn change(&mut self, bytes: &mut Vec<u8>) {
        let at = self.below(bytes.len().min(65_535) + 1);
        let end = (at + self.below(32)).min(bytes.len());
        match self.byte() % 6 {
            0 => bytes.truncate(at),
            1 => drop(bytes.splice(at..at, self.pick(WORDS).iter().copied())),
            2 => drop(bytes.splice(at..end, self.pick(WORDS).iter().copied())),
            3 => drop(bytes.drain(at..end)),
            4 => {
                let twice = bytes[at..end].to_vec();
                drop(bytes.splice(at..at, twice));
            }
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = self.byte();
                }
            }
        }
    }

    /// Bytes in pieces, cut anywhere.
    pub fn pieces<'b>(&mut self, bytes: &'b [u8]) -> Vec<&'b [u8]> {
        if self.in_256(16) && !bytes.is_empty() {
            return bytes.chunks(1).collect();
        }
        let mut cuts: Vec<usize> = (0..self.below(6)).map(|_| self.below(bytes.len().min(65_535) + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).collect()
    }
}
