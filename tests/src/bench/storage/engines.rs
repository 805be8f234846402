//! Engines on replicas.

use std::rc::Rc;

use super::load::{Load, Subject, Want};
use super::set::{SIZE, Set};
use crate::bench::Meter;

/// Paddock's engine, which is in the load generator.
pub(super) fn paddock(set: &Rc<Set>, load: Load, want: Want) -> Meter {
    let set = Rc::clone(set);
    Box::new(move || {
        let outcome = set.subject().load(load, &[])?;
        Ok(load.value(want, &outcome))
    })
}

/// Longhorn's, a process of its own that the load generator reaches by a socket.
pub(super) fn longhorn(set: &Rc<Set>, load: Load, want: Want) -> Meter {
    let set = Rc::clone(set);
    Box::new(move || {
        let engine = set.engine();
        let subject = Subject::Socket(engine.socket(), SIZE);
        let outcome = subject.load(load, &[])?;
        engine.shut_down();
        Ok(load.value(want, &outcome))
    })
}
