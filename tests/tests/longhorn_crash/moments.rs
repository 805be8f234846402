//! When engines are killed: at random, all over the time that they may be.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, SystemTime};

/// What repeats a run: the number that it says.
const VARIABLE: &str = "PADDOCK_SEED";

/// Each moment is so much of the time behind the one before, and wraps around: however few there are, they are spread evenly. The golden ratio.
const STEP: f64 = 0.618_033_988_749_895;

/// The random moments of a test.
pub struct Moments {
    seed: u64,
    test: String,
}

impl Moments {
    /// Those of a test, and says how to have the same ones again.
    pub fn new(test: &str) -> Self {
        let seed = match std::env::var(VARIABLE) {
            Ok(text) => text
                .parse()
                .unwrap_or_else(|error| panic!("{VARIABLE}={text}: {error}; it is a number")),
            Err(_) => {
                let now = SystemTime::UNIX_EPOCH.elapsed().unwrap();
                now.as_secs() << 20 | u64::from(now.subsec_micros())
            }
        };
        println!("{test}: the moments of {VARIABLE}={seed}");
        Self {
            seed,
            test: test.to_owned(),
        }
    }

    /// The moment of a round of something, in the time that it has. Where it begins is random.
    pub fn of(&self, what: impl Hash, round: usize, time: Duration) -> Duration {
        let mut hasher = DefaultHasher::new();
        (self.seed, &self.test, what).hash(&mut hasher);
        let begin = f64::from(u32::try_from(hasher.finish() >> 32).unwrap()) / f64::from(u32::MAX);
        let round = f64::from(u32::try_from(round).unwrap());
        time.mul_f64((begin + round * STEP).fract())
    }
}
