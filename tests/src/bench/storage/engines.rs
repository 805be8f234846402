//! Engines on replicas.

use std::rc::Rc;

use super::load::{Load, Subject, Want};
use super::set::{SIZE, Set, cpu_time};
use crate::bench::Meter;

/// Paddock's engine, which is in the load generator.
pub(super) fn paddock(set: &Rc<Set>, load: Load, want: Want) -> Meter {
    let set = Rc::clone(set);
    Box::new(move || {
        let before = set.cpu_time()?;
        let outcome = set.subject().load(load, &[])?;
        let cpu = set.cpu_time()?.saturating_sub(before);
        Ok(load.value(want, &outcome, cpu.as_secs_f64()))
    })
}

/// Longhorn's, a process of its own that the load generator reaches by a socket.
pub(super) fn longhorn(set: &Rc<Set>, load: Load, want: Want) -> Meter {
    let set = Rc::clone(set);
    Box::new(move || {
        let engine = set.engine();
        let subject = Subject::Socket(engine.socket(), SIZE);
        let before = set.cpu_time()? + cpu_time(engine.pid())?;
        let outcome = subject.load(load, &[])?;
        let after = set.cpu_time()? + cpu_time(engine.pid())?;
        engine.shut_down();
        let cpu = after.saturating_sub(before);
        Ok(load.value(want, &outcome, cpu.as_secs_f64()))
    })
}
