//! The heartbeat: one thread that looks at the clocks as often as it is told and now and then says what it saw.
//!
//! Whatever keeps it from running, such as the pause at the end of a migration, shows as a gap between two looks. It never
//! waits for the host: a heartbeat for which there is no room is dropped and counted.

use super::{Result, time::now_ns};
use crate::agent::Agent;
use paddock_probe::protocol::{Done, Event, Heartbeat, HeartbeatStart};
use rustix::time::ClockId;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// The flag that ends the thread in charge.
pub type Slot = Mutex<Option<Arc<AtomicBool>>>;

/// Answers `heartbeat`. Called by the thread that reads the port.
pub fn start(agent: &Arc<Agent>, request: HeartbeatStart) -> Result<Done> {
    if !(1..=60_000).contains(&request.interval_ms)
        || !(100..=1_000_000).contains(&request.sample_us)
    {
        return Err("`interval_ms` must be 1 to 60000, and `sample_us` 100 to 1000000".to_owned());
    }
    stop(agent);
    let ended = Arc::new(AtomicBool::new(false));
    let (mine, flag) = (Arc::clone(agent), Arc::clone(&ended));
    thread::Builder::new()
        .name("heartbeat".to_owned())
        .spawn(move || beat(&mine, request, &flag))
        .map_err(|error| format!("cannot start a thread: {error}"))?;
    *agent
        .heartbeat
        .lock()
        .unwrap_or_else(PoisonError::into_inner) = Some(ended);
    Ok(Done {})
}

/// Answers `heartbeat.stop`.
pub fn stop(agent: &Agent) -> Done {
    if let Some(ended) = agent
        .heartbeat
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take()
    {
        ended.store(true, Ordering::Relaxed);
    }
    Done {}
}

fn clocks() -> (u64, u64) {
    (now_ns(ClockId::Monotonic), now_ns(ClockId::Realtime))
}

fn beat(agent: &Agent, request: HeartbeatStart, ended: &AtomicBool) {
    let (sample, interval) = (
        Duration::from_micros(request.sample_us),
        request.interval_ms * 1_000_000,
    );
    let (mut monotonic, mut realtime) = clocks();
    let mut due = monotonic + interval;
    let mut beat = Heartbeat {
        sequence: 0,
        monotonic_ns: monotonic,
        realtime_ns: realtime,
        gap_ns: 0,
        realtime_gap_ns: 0,
        largest_gap_ns: 0,
        dropped: 0,
    };
    while !ended.load(Ordering::Relaxed) {
        thread::sleep(sample);
        let (before, before_realtime) = (monotonic, realtime);
        (monotonic, realtime) = clocks();
        beat.gap_ns = beat.gap_ns.max(monotonic.saturating_sub(before));
        beat.realtime_gap_ns = beat
            .realtime_gap_ns
            .max(realtime.saturating_sub(before_realtime));
        if monotonic < due {
            continue;
        }
        beat.largest_gap_ns = beat.largest_gap_ns.max(beat.gap_ns);
        (beat.monotonic_ns, beat.realtime_ns) = (monotonic, realtime);
        if !agent.writer.try_event(Event::Heartbeat(beat.clone())) {
            beat.dropped += 1;
        }
        beat.sequence += 1;
        (beat.gap_ns, beat.realtime_gap_ns) = (0, 0);
        // After a long gap the heartbeat goes on from now rather than catch up.
        due = monotonic + interval;
    }
}
