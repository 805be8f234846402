//! The power button: a thread for each input device that has the key, sending an event when it is pressed.
//!
//! The ACPI button arrives as an input device of the `button` and `evdev` drivers. A device file is read as the kernel's
//! `struct input_event` of a 64-bit machine: two 8-byte words of time, type, code, value.

use crate::agent::Agent;
use crate::sysfs;
use paddock_probe::protocol::{Event, PowerButton};
use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;
use std::thread;

const EVENT_SIZE: usize = 24;
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;
const KEY_SLEEP: u16 = 142;
const PRESSED: i32 = 1;

/// Watches every button there is.
pub fn watch(agent: &Arc<Agent>) -> io::Result<()> {
    for name in sysfs::names("/sys/class/input")
        .iter()
        .filter(|name| name.starts_with("event"))
    {
        if !sysfs::text(format!("/sys/class/input/{name}/device/name")).contains("Button") {
            continue;
        }
        let device = format!("/dev/input/{name}");
        match File::open(&device) {
            Ok(file) => {
                let agent = Arc::clone(agent);
                thread::Builder::new()
                    .name("button".to_owned())
                    .spawn(move || read(&agent, &device, file))?;
            }
            Err(error) => crate::init::console(&format!("cannot watch {device}: {error}")),
        }
    }
    Ok(())
}

fn read(agent: &Agent, device: &str, mut file: File) {
    let mut event = [0; EVENT_SIZE];
    while file.read_exact(&mut event).is_ok() {
        if let Some(key) = pressed(&event) {
            agent.writer.try_event(Event::PowerButton(PowerButton {
                device: device.to_owned(),
                key,
            }));
        }
    }
}

/// The power or sleep key, if that is what was pressed.
fn pressed(event: &[u8; EVENT_SIZE]) -> Option<u16> {
    let kind = u16::from_ne_bytes([event[16], event[17]]);
    let code = u16::from_ne_bytes([event[18], event[19]]);
    let value = i32::from_ne_bytes([event[20], event[21], event[22], event[23]]);
    (kind == EV_KEY && value == PRESSED && [KEY_POWER, KEY_SLEEP].contains(&code)).then_some(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: u16, code: u16, value: i32) -> [u8; EVENT_SIZE] {
        let mut event = [0; EVENT_SIZE];
        event[16..18].copy_from_slice(&kind.to_ne_bytes());
        event[18..20].copy_from_slice(&code.to_ne_bytes());
        event[20..].copy_from_slice(&value.to_ne_bytes());
        event
    }

    #[test]
    fn only_a_press_counts() {
        assert_eq!(pressed(&event(EV_KEY, KEY_POWER, PRESSED)), Some(KEY_POWER));
        assert_eq!(pressed(&event(EV_KEY, KEY_POWER, 0)), None);
        assert_eq!(pressed(&event(EV_KEY, 30, PRESSED)), None);
        assert_eq!(pressed(&event(0, 0, 0)), None);
    }
}
