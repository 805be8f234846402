//! The events of the process: a bounded buffer of the last ones, numbered from 1, that any number of clients follow at their pace.
//!
//! Written on the control plane's thread, and safe on any. A client that falls behind, or comes back late, is told what it missed
//! ([`Delivery::Gap`]); it never holds anybody up.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::resource::{Event, EventKind, Gap};

/// Events that are kept. A guest that does nothing but reset makes two each time.
const CAPACITY: usize = 512;

/// The last events. Clone the [`Arc`] it lives in.
#[derive(Debug)]
pub struct Journal {
    kept: Mutex<Kept>,
    /// Changes with every event and at the end.
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Kept {
    events: VecDeque<Arc<Event>>,
    last: u64,
    closed: bool,
}

/// What a follower gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    /// The next event.
    Event(Arc<Event>),
    /// Events are missing here.
    Gap {
        /// The number of the last one that is missing.
        seq: u64,
        /// How many they are.
        gap: Gap,
    },
}

impl Default for Journal {
    fn default() -> Self {
        Self {
            kept: Mutex::default(),
            changed: watch::Sender::new(()),
        }
    }
}

impl Journal {
    /// Adds an event and returns its number. After the end it is lost.
    pub fn publish(&self, kind: EventKind) -> u64 {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let mut kept = self.kept.lock();
        if kept.closed {
            return kept.last;
        }
        kept.last += 1;
        let event = Event {
            seq: kept.last,
            time_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            kind,
        };
        if kept.events.len() == CAPACITY {
            kept.events.pop_front();
        }
        kept.events.push_back(Arc::new(event));
        let last = kept.last;
        drop(kept);
        self.changed.send_replace(());
        last
    }

    /// The number of the last event, 0 if there was none.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.kept.lock().last
    }

    /// No more events: followers get what is left, and then the end.
    pub fn close(&self) {
        self.kept.lock().closed = true;
        self.changed.send_replace(());
    }

    /// Follows the events after number `after`: 0 begins with the oldest that is kept, `None` with the next one that happens. A number
    /// that is yet to come is another process's: a gap of unknown size is told, then all that is kept.
    #[must_use]
    pub fn follow(self: &Arc<Self>, after: Option<u64>) -> Follower {
        let last = self.last();
        let foreign = after.is_some_and(|after| after > last);
        Follower {
            changed: self.changed.subscribe(),
            after: if foreign { 0 } else { after.unwrap_or(last) },
            foreign,
            journal: Arc::clone(self),
        }
    }
}

impl Kept {
    /// What follows number `after`, if there is something.
    fn next(&self, after: u64) -> Option<Delivery> {
        let oldest = self.events.front()?.seq;
        if after + 1 < oldest {
            let seq = oldest - 1;
            let gap = Gap {
                lost: Some(seq - after),
            };
            return Some(Delivery::Gap { seq, gap });
        }
        let index = usize::try_from(after + 1 - oldest).ok()?;
        self.events.get(index).cloned().map(Delivery::Event)
    }
}

/// A place in the journal.
#[derive(Debug)]
pub struct Follower {
    journal: Arc<Journal>,
    changed: watch::Receiver<()>,
    after: u64,
    /// The number it asked for is another process's, which it has not been told yet.
    foreign: bool,
}

impl Follower {
    /// The next delivery; waits for it. `None` at the end. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Delivery> {
        if std::mem::take(&mut self.foreign) {
            let oldest = self.journal.kept.lock().events.front().map(|e| e.seq);
            self.after = oldest.map_or(0, |seq| seq - 1);
            return Some(Delivery::Gap {
                seq: self.after,
                gap: Gap { lost: None },
            });
        }
        loop {
            self.changed.borrow_and_update();
            let (delivery, closed) = {
                let kept = self.journal.kept.lock();
                (kept.next(self.after), kept.closed)
            };
            if let Some(delivery) = delivery {
                self.after = match &delivery {
                    Delivery::Event(event) => event.seq,
                    Delivery::Gap { seq, .. } => *seq,
                };
                return Some(delivery);
            }
            if closed || self.changed.changed().await.is_err() {
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread();
        { runtime }.build().unwrap().block_on(future)
    }

    fn with(events: usize) -> Arc<Journal> {
        let journal = Arc::<Journal>::default();
        for _ in 0..events {
            journal.publish(EventKind::Deleted);
        }
        journal
    }

    /// All that a follower gets until the end, gaps as negative numbers.
    fn followed(journal: &Arc<Journal>, after: Option<u64>) -> Vec<i64> {
        let mut follower = journal.follow(after);
        journal.close();
        block_on(async {
            let mut got = Vec::new();
            while let Some(delivery) = follower.next().await {
                got.push(match delivery {
                    Delivery::Event(event) => i64::try_from(event.seq).unwrap(),
                    Delivery::Gap { gap, .. } => {
                        gap.lost.map_or(i64::MIN, |n| -i64::try_from(n).unwrap())
                    }
                });
            }
            got
        })
    }

    #[test]
    fn followers_begin_where_they_say() {
        assert_eq!(followed(&with(3), Some(0)), [1, 2, 3]);
        assert_eq!(followed(&with(3), Some(2)), [3]);
        assert!(followed(&with(3), Some(3)).is_empty());
        assert!(followed(&with(3), None).is_empty());
        assert!(followed(&with(0), Some(0)).is_empty());
    }

    #[test]
    fn what_was_dropped_is_told() {
        let journal = with(CAPACITY + 10);
        let got = followed(&journal, Some(4));
        assert_eq!(got[..2], [-6, 11]);
        assert_eq!(got.len(), CAPACITY + 1);
        assert_eq!(journal.last(), 522);
    }

    #[test]
    fn a_number_of_another_process_starts_anew() {
        assert_eq!(followed(&with(2), Some(7)), [i64::MIN, 1, 2]);
        assert_eq!(followed(&with(0), Some(u64::MAX)), [i64::MIN]);
    }

    #[test]
    fn followers_wait_and_are_woken() {
        let journal = with(1);
        let mut follower = journal.follow(None);
        block_on(async {
            let later = async {
                tokio::task::yield_now().await;
                journal.publish(EventKind::Deleted);
                journal.close();
                // After the end: lost.
                assert_eq!(journal.publish(EventKind::Deleted), 2);
            };
            let (delivery, ()) = tokio::join!(follower.next(), later);
            assert!(matches!(delivery, Some(Delivery::Event(event)) if event.seq == 2));
            assert_eq!(follower.next().await, None);
        });
    }
}
