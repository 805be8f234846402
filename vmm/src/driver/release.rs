//! Whether anything of a VM is still held: files and their locks, taps, memory, threads.
//!
//! A step that hangs is left behind when the VM is stopped, so the end of the VM is not yet the end of what it holds. Whatever holds
//! something has a [`Held`]; with the last one gone, [`Released`] says so.

use tokio::sync::watch;

/// Something of the VM is held as long as this exists.
#[derive(Debug, Clone)]
pub struct Held(
    #[expect(dead_code, reason = "that it is there is all that it is for")] watch::Sender<()>,
);

/// Waits for the last [`Held`].
#[derive(Debug, Clone)]
pub struct Released(watch::Receiver<()>);

impl Held {
    /// The first one of a VM.
    #[must_use]
    pub fn new() -> (Self, Released) {
        let (sender, receiver) = watch::channel(());
        (Self(sender), Released(receiver))
    }
}

impl Released {
    /// Returns when nothing is held any more.
    pub async fn wait(mut self) {
        // Nothing is ever sent, so this ends with the senders.
        while self.0.changed().await.is_ok() {}
    }
}
