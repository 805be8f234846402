//! A VM's balloon as others see it: its target, what the guest gave, and the guest's memory statistics.
//!
//! Made with the state driver, which alone sets the target, on request; lives through resets of the machine. Read on the control
//! plane's thread, told news on the device's threads, which wait for nobody here.
//!
//! The guest decides when it answers, if ever, and everything that it answers.

use std::time::{Duration, Instant};

use paddock_api::spec::VmSpec;
use paddock_devices::virtio::balloon::{BalloonError, BalloonHandle};
use tokio::sync::watch;

pub use paddock_devices::virtio::balloon::{BalloonStatus, CounterValues, Statistics};

/// Why there are no statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StatisticsError {
    /// The guest cannot be asked.
    #[error(transparent)]
    Balloon(#[from] BalloonError),
    /// The guest did not answer in time.
    #[error("the guest did not tell its memory statistics within {0:?}")]
    TimedOut(Duration),
}

/// A VM's balloon. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Balloon {
    handle: BalloonHandle,
    changed: watch::Receiver<()>,
}

impl Balloon {
    /// The balloon of a VM that has one.
    pub(crate) fn new(spec: &VmSpec) -> Option<Self> {
        let balloon = spec.balloon.as_ref()?;
        let (sender, changed) = watch::channel(());
        let handle = BalloonHandle::new(spec.memory.size.bytes(), move || {
            sender.send_replace(());
        });
        let this = Self { handle, changed };
        this.set_target(balloon.size.bytes());
        Some(this)
    }

    /// The device's end.
    pub(crate) fn handle(&self) -> &BalloonHandle {
        &self.handle
    }

    /// Whether the guest can be asked for `target` bytes.
    ///
    /// # Errors
    /// When it is not a multiple of 4096, or not less than the guest's memory.
    pub fn check_target(&self, target: u64) -> Result<(), BalloonError> {
        self.handle.check_target(target)
    }

    /// Asks the guest for `target` bytes, which were checked.
    pub(crate) fn set_target(&self, target: u64) {
        match self.handle.set_target(target) {
            Ok(()) => tracing::info!(target, "balloon target"),
            Err(error) => tracing::error!(%error, "balloon target"),
        }
    }

    /// Where it is now.
    #[must_use]
    pub fn status(&self) -> BalloonStatus {
        self.handle.status()
    }

    /// Tells when [`status`](Self::status) has news, but for its counters.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<()> {
        self.changed.clone()
    }

    /// Asks the guest for its memory statistics, and waits for them no longer than `limit`. Any number may wait at once; the guest is
    /// asked once.
    ///
    /// # Errors
    /// When the guest has no driver to ask, or does not answer in time.
    pub async fn statistics(&self, limit: Duration) -> Result<Statistics, StatisticsError> {
        let mut changed = self.watch();
        let asked = Instant::now();
        self.handle.request_statistics()?;
        let answer = async {
            loop {
                changed.mark_unchanged();
                let status = self.status();
                if let Some(new) = status.statistics.filter(|new| new.taken > asked) {
                    return Ok(new);
                }
                if !status.driver || changed.changed().await.is_err() {
                    return Err(BalloonError::NoDriver.into());
                }
            }
        };
        tokio::time::timeout(limit, answer)
            .await
            .unwrap_or(Err(StatisticsError::TimedOut(limit)))
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::sync::Arc;
    use std::sync::atomic::Ordering;

    use paddock_devices::virtio::balloon::{BalloonOptions, Reclaim, VirtioBalloon};
    use paddock_devices::virtio::{
        GuestMap, GuestRam, QueueInterrupt, QueueResources, VirtioDevice,
    };
    use virtio_queue::{Queue, QueueT};
    use vm_memory::{Bytes, GuestAddress};
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;

    /// The statistics queue of a device, and its index.
    const QUEUE: u16 = 2;
    const AVAIL: u64 = 0x400;
    const USED: u64 = 0x800;
    const BUFFER: u64 = 0x1000;

    #[derive(Debug)]
    struct Nothing;

    impl Reclaim for Nothing {
        fn granule(&self) -> u64 {
            4096
        }
        fn reclaim(&self, _range: Range<u64>) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl QueueInterrupt for Nothing {
        fn signal_queue(&self, _queue: u16) {}
        fn signal_config(&self) {}
        fn needs_reset(&self, reason: &str) {
            panic!("{reason}");
        }
    }

    /// A guest's driver of one buffer for statistics.
    #[derive(Clone)]
    struct Guest {
        map: GuestMap,
        kick: Arc<EventFd>,
    }

    impl Guest {
        fn start(device: &mut VirtioBalloon) -> Self {
            let map = GuestMap::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap();
            let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
            let mut queue = Queue::new(16).unwrap();
            queue.set_desc_table_address(Some(0), Some(0));
            queue.set_avail_ring_address(Some(0x400), Some(0));
            queue.set_used_ring_address(Some(0x800), Some(0));
            queue.set_ready(true);
            // One readable descriptor of ten bytes.
            map.write_obj(BUFFER, GuestAddress(0)).unwrap();
            map.write_obj(10_u32, GuestAddress(8)).unwrap();
            let resources = QueueResources {
                queue,
                memory: GuestRam::new(map.clone()),
                kick: Arc::clone(&kick),
                interrupt: Arc::new(Nothing),
                features: device.features(),
            };
            device.start_queue(QUEUE, resources).unwrap();
            Self { map, kick }
        }

        /// Tells how much memory is free, for the `turn`th time.
        fn tell(&self, free: u64, turn: u16) {
            self.map.write_obj(4_u16, GuestAddress(BUFFER)).unwrap();
            self.map.write_obj(free, GuestAddress(BUFFER + 2)).unwrap();
            self.map
                .store(turn, GuestAddress(AVAIL + 2), Ordering::Release)
                .unwrap();
            self.kick.write(1).unwrap();
        }

        /// Waits until the buffer came back for the `turn`th time.
        fn wait_asked(&self, turn: u16) {
            let start = Instant::now();
            let used = || -> u16 {
                let index = GuestAddress(USED + 2);
                self.map.load(index, Ordering::Acquire).unwrap()
            };
            while used() != turn {
                assert!(start.elapsed() < Duration::from_secs(20));
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    fn balloon(json: &str) -> Option<Balloon> {
        Balloon::new(&VmSpec::from_json(json).unwrap())
    }

    #[test]
    fn the_spec_says_whether_there_is_one_and_its_first_target() {
        assert!(balloon(r#"{"boot": {"kernel": "k"}}"#).is_none());
        let balloon = balloon(
            r#"{"boot": {"kernel": "k"}, "memory": {"size": "64MiB"}, "balloon": {"size": "8MiB"}}"#,
        )
        .unwrap();
        let news = balloon.watch();
        let status = balloon.status();
        assert_eq!((status.target, status.actual), (8 << 20, 0));
        balloon.set_target(16 << 20);
        assert!(news.has_changed().unwrap());
        assert_eq!(balloon.status().target, 16 << 20);
        assert!(balloon.check_target(64 << 20).is_err());
    }

    #[test]
    fn statistics_come_from_the_driver_or_not_at_all() {
        let balloon = balloon(r#"{"boot": {"kernel": "k"}, "balloon": {}}"#).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let long = Duration::from_secs(20);
        let ask = |limit| runtime.block_on(balloon.statistics(limit));
        let nobody = Err(StatisticsError::Balloon(BalloonError::NoDriver));
        assert_eq!(ask(long), nobody);

        let (handle, options) = (balloon.handle().clone(), BalloonOptions::default());
        let mut device = VirtioBalloon::new("balloon", handle, Arc::new(Nothing), options);
        let guest = Guest::start(&mut device);
        let told = |free, turn| {
            guest.tell(free, turn);
            let start = Instant::now();
            while balloon.status().statistics.and_then(|new| new.free) != Some(free) {
                assert!(start.elapsed() < long);
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        told(1, 1);
        let short = Duration::from_millis(50);
        assert_eq!(ask(short), Err(StatisticsError::TimedOut(short)));
        // An answer that comes too late is kept, but answers no later question.
        guest.wait_asked(1);
        told(2, 2);
        let answering = guest.clone();
        let answers = std::thread::spawn(move || {
            answering.wait_asked(2);
            answering.tell(3, 3);
        });
        assert_eq!(ask(long).unwrap().free, Some(3));
        answers.join().unwrap();

        // Whoever waits while the driver goes away hears of it.
        let leaves = std::thread::spawn(move || {
            guest.wait_asked(3);
            device.stop_queue(QUEUE).unwrap();
        });
        assert_eq!(ask(long), nobody);
        leaves.join().unwrap();
    }
}
