//! A queue at the gate (see `shared`): what it may send to replicas, and when.

use super::{MAX_COPIES, VolumeQueue};

impl VolumeQueue {
    /// Whether a piece may be sent now; otherwise we are woken up when it may.
    fn may_send(&mut self) -> bool {
        if self.entered {
            return self.shared.is_open();
        }
        self.entered = self.shared.enter(&self.post);
        if self.entered {
            // What came while the gate was shut, such as a connection to a new replica, comes before what is sent now.
            self.read_mail();
        }
        self.entered
    }

    /// Tells the gate when replicas have nothing of ours.
    pub(super) fn rest(&mut self) {
        if self.entered && self.asked == 0 {
            self.entered = false;
            self.shared.leave(&self.post);
        }
    }

    /// Whether another request may be begun beside those that are.
    fn has_room(&self) -> bool {
        self.begun == 0 || self.copies < MAX_COPIES
    }

    /// Whether there is something to be sent that may be, unless the gate is shut meanwhile: then we are woken up when it is open again.
    pub(super) fn could_send(&self) -> bool {
        let any = !self.next.is_empty() || !self.held.is_empty() && self.has_room();
        any && self.shared.is_open()
    }

    /// Sends the next pieces of requests that were begun, as far as that may be.
    pub(super) fn send_next(&mut self) {
        while !self.next.is_empty() && self.may_send() {
            if let Some(number) = self.next.pop_front() {
                self.send_piece(number);
            }
        }
    }

    /// Begins what is held, as far as that may be.
    pub(super) fn begin_held(&mut self) {
        while !self.held.is_empty() && self.has_room() && self.may_send() {
            if let Some(request) = self.held.pop_front() {
                self.begin(request);
            }
        }
    }
}
