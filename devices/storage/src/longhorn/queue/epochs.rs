//! How long the oldest frame has been unanswered that a replica has, to a second: frames are counted by the second in which they were asked, so that none of
//! them needs a look at the clock or a place in a list. A replica that answers others meanwhile is not silent, and would otherwise be waited for for ever.

use std::collections::VecDeque;

/// Milliseconds of an epoch.
const EPOCH: u64 = 1000;

/// Frames that are not answered, by when they were asked. As many entries as a replica may leave a frame unanswered for seconds.
#[derive(Debug, Default)]
pub(super) struct Epochs {
    /// Epochs and frames, the oldest first; the first has some.
    counts: VecDeque<(u64, usize)>,
}

impl Epochs {
    /// Counts a frame that is asked now, in milliseconds that never go back. Returns its epoch.
    pub(super) fn ask(&mut self, now: u64) -> u64 {
        let epoch = now / EPOCH;
        match self.counts.back_mut() {
            Some((last, count)) if *last == epoch => *count += 1,
            _ => self.counts.push_back((epoch, 1)),
        }
        epoch
    }

    /// A frame of that epoch was answered.
    pub(super) fn answer(&mut self, epoch: u64) {
        // Most are of the last.
        let mut counts = self.counts.iter_mut().rev();
        if let Some((_, count)) = counts.find(|(other, _)| *other == epoch) {
            *count -= 1;
        }
        while self.counts.front().is_some_and(|(_, count)| *count == 0) {
            self.counts.pop_front();
        }
    }

    /// Since when the oldest has been asked at least, in milliseconds; `None` when all were answered.
    pub(super) fn oldest(&self) -> Option<u64> {
        let (epoch, _) = self.counts.front()?;
        Some((epoch + 1) * EPOCH)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::{EPOCH, Epochs};

    proptest! {
        /// As if each frame had its time in a list.
        #[test]
        fn like_a_list(steps in prop::collection::vec((0..2500_u64, any::<Option<usize>>()), 1..200)) {
            let mut epochs = Epochs::default();
            let (mut asked, mut now, mut number) = (BTreeMap::new(), 0, 0);
            for (pause, answer) in steps {
                now += pause;
                match answer {
                    Some(which) if !asked.is_empty() => {
                        let key = *asked.keys().nth(which % asked.len()).expect("one of them");
                        let (_, epoch) = asked.remove(&key).expect("it is there");
                        epochs.answer(epoch);
                    }
                    _ => {
                        asked.insert(number, (now, epochs.ask(now)));
                        number += 1;
                    }
                }
                let oldest = asked.values().map(|(at, _)| *at).min();
                let told = epochs.oldest();
                prop_assert_eq!(told.is_some(), oldest.is_some());
                if let (Some(told), Some(oldest)) = (told, oldest) {
                    prop_assert!(oldest < told && told <= oldest + EPOCH);
                    let seconds = now / EPOCH + 2 - told / EPOCH;
                    prop_assert!(epochs.counts.len() as u64 <= seconds);
                }
            }
        }
    }
}
