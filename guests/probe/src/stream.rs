//! The byte stream of the TCP tests: pseudo-random, drawn from a seed, and a checksum over what went through.
//!
//! Either side makes and checks the stream with the same code, at the speed of memory, without keeping any of it.

/// splitmix64: small, fast, and good enough to make every byte depend on its place.
#[derive(Debug, Clone)]
pub struct SplitMix(u64);

impl SplitMix {
    /// A generator for `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }
}

/// Spreads every bit of `value` over all of the result.
#[must_use]
pub fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Makes the stream of a seed, in pieces of any size.
#[derive(Debug, Clone)]
pub struct Stream {
    words: SplitMix,
    left: [u8; 8],
    used: usize,
}

impl Stream {
    /// The stream of `seed`, from its start.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            words: SplitMix::new(mix(seed)),
            left: [0; 8],
            used: 8,
        }
    }

    /// Fills `buffer` with what comes next.
    pub fn fill(&mut self, mut buffer: &mut [u8]) {
        while !buffer.is_empty() {
            if self.used == 8 {
                let whole = buffer.len() / 8 * 8;
                let (words, rest) = buffer.split_at_mut(whole);
                for word in words.chunks_exact_mut(8) {
                    word.copy_from_slice(&self.words.next_u64().to_le_bytes());
                }
                if rest.is_empty() {
                    return;
                }
                buffer = rest;
                self.left = self.words.next_u64().to_le_bytes();
                self.used = 0;
            }
            let take = buffer.len().min(8 - self.used);
            let (head, rest) = buffer.split_at_mut(take);
            head.copy_from_slice(&self.left[self.used..self.used + take]);
            self.used += take;
            buffer = rest;
        }
    }
}

/// FNV-1a over 64 bits: the same whichever way the bytes were cut into pieces.
#[derive(Debug, Clone)]
pub struct Checksum(u64);

impl Default for Checksum {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Checksum {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    /// The sum over all bytes so far.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pieces_do_not_matter(seed: u64, cuts in prop::collection::vec(0usize..40, 0..20)) {
            let total: usize = cuts.iter().sum();
            let mut whole = vec![0; total];
            Stream::new(seed).fill(&mut whole);
            let (mut stream, mut pieces) = (Stream::new(seed), vec![0; total]);
            let (mut at, mut sum) = (0, Checksum::default());
            for cut in cuts {
                stream.fill(&mut pieces[at..at + cut]);
                sum.update(&pieces[at..at + cut]);
                at += cut;
            }
            prop_assert_eq!(&whole, &pieces);
            let mut once = Checksum::default();
            once.update(&whole);
            prop_assert_eq!(once.value(), sum.value());
        }
    }

    #[test]
    fn seeds_differ() {
        let (mut one, mut two) = ([0; 64], [0; 64]);
        Stream::new(1).fill(&mut one);
        Stream::new(2).fill(&mut two);
        assert_ne!(one, two);
    }

    #[test]
    fn checksum_is_fnv1a() {
        let mut sum = Checksum::default();
        sum.update(b"foobar");
        assert_eq!(sum.value(), 0x8594_4171_f739_67e8);
    }
}
