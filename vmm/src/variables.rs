//! The file of the firmware's variables as others see it: whether it has all that the guest has set, and whether it can be written.
//!
//! Made with the state driver; the file comes when firmware is opened, and stays through resets. Read on the control plane's thread; told
//! news on the thread that writes the file, which waits for nobody here. The guest decides how often its variables change, and the host's file system
//! whether they can be kept: no more than one event comes of each time that it begins or ceases to refuse.

use std::sync::{Arc, OnceLock};

use paddock_api::journal::Journal;
use paddock_api::resource::{self, EventKind};
use paddock_devices::firmware::vars::{VarsError, VarsEvents, VarsStatus, VarsStore, VarsWatch};

use crate::error::chain;

/// A VM's variables. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Variables(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    journal: Arc<Journal>,
    store: OnceLock<VarsWatch>,
}

impl Variables {
    /// Of a VM that has no file for them yet. Events go to `journal`.
    #[must_use]
    pub fn new(journal: Arc<Journal>) -> Self {
        let store = OnceLock::new();
        Self(Arc::new(Inner { journal, store }))
    }

    /// They are in this store, for as long as the VM lives.
    pub fn attach(&self, store: &VarsStore) {
        store.set_events(Arc::clone(&self.0) as _);
        let _ = self.0.store.set(store.watch());
    }

    /// How their file is; `None` where they are in none.
    #[must_use]
    pub fn status(&self) -> Option<VarsStatus> {
        self.0.store.get().map(VarsWatch::status)
    }

    /// The same, as the API's clients see it.
    #[must_use]
    pub fn answer(&self) -> Option<resource::Variables> {
        let status = self.status()?;
        Some(resource::Variables {
            unsaved: status.unsaved,
            error: status.error.map(|error| chain(error.as_ref())),
        })
    }
}

impl VarsEvents for Inner {
    fn write_failed(&self, error: &VarsError) {
        let error = Some(chain(error));
        self.journal.publish(EventKind::Variables { error });
    }

    fn written_again(&self) {
        let event = EventKind::Variables { error: None };
        self.journal.publish(event);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;
    use std::path::Path;
    use std::time::Duration;

    use paddock_api::journal::Delivery;
    use paddock_devices::firmware::vars::VarsOptions;
    use paddock_devices::firmware::volume::VolumeKind;
    use paddock_devices::firmware::volume::double::volume;

    use super::*;

    const SIZE: usize = 0x2_0000;
    const PATIENCE: Duration = Duration::from_secs(20);

    /// A store in `directory`.
    pub(crate) fn store(directory: &Path) -> VarsStore {
        let template = volume(VolumeKind::Variables, SIZE);
        VarsStore::open(&VarsOptions {
            path: &directory.join("vm.fd"),
            size: SIZE,
            template: Some(&template),
        })
        .unwrap()
    }

    #[test]
    fn a_file_that_cannot_be_written_is_an_event_and_so_is_its_return() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Arc::<Journal>::default();
        let variables = Variables::new(Arc::clone(&journal));
        assert_eq!(variables.answer(), None, "there is no file yet");
        let store = store(directory.path());
        variables.attach(&store);
        let well = resource::Variables {
            unsaved: false,
            error: None,
        };
        assert_eq!(variables.answer(), Some(well.clone()));

        let obstacle = directory.path().join(".vm.fd.new");
        fs::create_dir(&obstacle).unwrap();
        store.changed().flash_changed();
        store.flush(PATIENCE).unwrap_err();
        let now = variables.answer().unwrap();
        assert!(now.unsaved);
        let error = now.error.unwrap();
        assert!(error.contains("vm.fd: cannot be written"), "{error}");
        assert!(error.contains("directory"), "with the cause: {error}");
        fs::remove_dir(&obstacle).unwrap();
        store.flush(PATIENCE).unwrap();
        assert_eq!(variables.answer(), Some(well));

        journal.close();
        let runtime = tokio::runtime::Builder::new_current_thread();
        let kinds = { runtime }.build().unwrap().block_on(async {
            let (mut follower, mut kinds) = (journal.follow(Some(0)), Vec::new());
            while let Some(Delivery::Event(event)) = follower.next().await {
                kinds.push(event.kind.clone());
            }
            kinds
        });
        let error = Some(error);
        let expected = [error, None].map(|error| EventKind::Variables { error });
        assert_eq!(kinds, expected);
    }
}
