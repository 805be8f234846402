//! ACPI power management, the fixed hardware of an ICH9 in ACPI mode (ACPI 6.5 §4.8): PM1 event and control registers, PM
//! timer, GPE0, and SMI_EN, which tells firmware that there is no SMM to set up.
//!
//! 128 ports; where they lie (PMBASE) is decided by the LPC bridge. Served on vCPU threads, the power button on any. The guest can
//! set masks, clear status and ask to be powered off. Not served: a PM timer carry status or interrupt (TMR_STS, TMR_EN), the RTC
//! alarm, and sleep states other than S5.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::PowerEvents;
use crate::bus::BusDevice;
use crate::interrupt::IrqLine;
use crate::throttle::Throttle;

/// Number of ports.
pub const PM_PORTS: u64 = 128;
/// Offset of the PM1 event block (4 bytes: status, enable), for the FADT.
pub const PM1_EVENT: u16 = 0x00;
/// Offset of the PM1 control block (2 bytes), for the FADT.
pub const PM1_CONTROL: u16 = 0x04;
/// Offset of the PM timer (4 bytes), for the FADT.
pub const PM_TIMER: u16 = 0x08;
/// Offset of the GPE0 block, for the FADT.
pub const GPE0: u16 = 0x20;
/// Length of the GPE0 block in bytes: half status, half enable, a bit for each of 64 events.
pub const GPE0_LENGTH: u8 = 16;
/// SLP_TYP of S5, for the DSDT's `_S5`. OVMF writes this one without asking the tables.
pub const S5_SLEEP_TYPE: u8 = 0;
/// Ticks of the PM timer in a second.
pub const PM_TIMER_HZ: u32 = 3_579_545;

const GPE0_ENABLE: u64 = GPE0 as u64 + GPE0_LENGTH as u64 / 2;
const SMI_EN: u64 = 0x30;
/// APMC_EN: SMM is set up already; SeaBIOS tries to, and waits for ever, unless it reads this.
const SMI_EN_VALUE: u32 = 1 << 5;

/// PM1 status and enable: power button.
const POWER_BUTTON: u16 = 1 << 8;
/// PM1 status and enable bits that a guest can enable: global lock, power button.
const PM1_ENABLES: u16 = 1 << 5 | POWER_BUTTON | 1 << 10;
/// PM1 control: interrupts come as SCI. The machine is always in ACPI mode, as the FADT's lack of an SMI command says.
const SCI_EN: u16 = 1 << 0;
/// PM1 control bits that are stored: bus master reload and sleep type.
const PM1_CONTROL_STORED: u16 = 1 << 1 | SLEEP_TYPE;
const SLEEP_TYPE: u16 = 0b111 << 10;
const SLEEP_ENABLE: u16 = 1 << 13;

/// The power-management block.
#[derive(Debug)]
pub struct AcpiPm {
    /// Zero of the PM timer.
    start: Instant,
    state: Mutex<State>,
    sci: Arc<dyn IrqLine>,
    events: Arc<dyn PowerEvents>,
    log: Throttle,
}

#[derive(Debug, Default)]
struct State {
    pm1_status: u16,
    pm1_enable: u16,
    pm1_control: u16,
    gpe_status: [u8; 8],
    gpe_enable: [u8; 8],
    sci_high: bool,
}

impl State {
    fn sci_wanted(&self) -> bool {
        self.pm1_status & self.pm1_enable != 0
            || self
                .gpe_status
                .iter()
                .zip(&self.gpe_enable)
                .any(|(status, enable)| status & enable != 0)
    }
}

impl AcpiPm {
    /// At power-on state. `sci` is the level-triggered interrupt the FADT names.
    #[must_use]
    pub fn new(sci: Arc<dyn IrqLine>, events: Arc<dyn PowerEvents>) -> Self {
        Self {
            start: Instant::now(),
            state: Mutex::new(State::default()),
            sci,
            events,
            log: Throttle::new(),
        }
    }

    /// Presses the power button. The guest notices if it has ACPI's power button enabled.
    pub fn press_power_button(&self) {
        let mut state = self.state.lock();
        state.pm1_status |= POWER_BUTTON;
        self.update_sci(&mut state);
    }

    /// Whether the guest listens to the power button.
    #[must_use]
    pub fn power_button_enabled(&self) -> bool {
        self.state.lock().pm1_enable & POWER_BUTTON != 0
    }

    /// Raises general-purpose event `event` (0 to 63; others do not exist and are ignored).
    pub fn raise_gpe(&self, event: u8) {
        let mut state = self.state.lock();
        if let Some(byte) = state.gpe_status.get_mut(usize::from(event / 8)) {
            *byte |= 1 << (event % 8);
            self.update_sci(&mut state);
        }
    }

    /// The line follows status and enable. Under the lock, so that levels reach the line in order.
    fn update_sci(&self, state: &mut State) {
        let wanted = state.sci_wanted();
        if wanted == state.sci_high {
            return;
        }
        match self.sci.set_level(wanted) {
            Ok(()) => state.sci_high = wanted,
            Err(error) => {
                if let Some(held_back) = self.log.pass() {
                    tracing::warn!(%error, held_back, "setting the SCI line");
                }
            }
        }
    }

    fn read_byte(&self, state: &State, timer: u32, offset: u64) -> u8 {
        let byte_of = |value: u32, base: u64| {
            u8::try_from(value >> (8 * (offset - base)) & 0xff).unwrap_or_default()
        };
        match offset {
            0..2 => byte_of(state.pm1_status.into(), 0),
            2..4 => byte_of(state.pm1_enable.into(), 2),
            4..6 => byte_of((state.pm1_control | SCI_EN).into(), 4),
            8..12 => byte_of(timer, 8),
            0x20..GPE0_ENABLE => byte_at(&state.gpe_status, offset - 0x20),
            GPE0_ENABLE..0x30 => byte_at(&state.gpe_enable, offset - GPE0_ENABLE),
            SMI_EN..0x34 => byte_of(SMI_EN_VALUE, SMI_EN),
            _ => 0,
        }
    }

    /// Writes a byte; says whether it asks for S5.
    fn write_byte(state: &mut State, offset: u64, value: u8) -> bool {
        // The byte in its place in a 16-bit register, and the bits it covers.
        let shift = 8 * (offset & 1);
        let (bits, covered) = (u16::from(value) << shift, 0xff_u16 << shift);
        match offset {
            0..2 => state.pm1_status &= !bits,
            2..4 => state.pm1_enable = (state.pm1_enable & !covered | bits) & PM1_ENABLES,
            4..6 => {
                state.pm1_control = (state.pm1_control & !covered | bits) & PM1_CONTROL_STORED;
                let sleep_type = (state.pm1_control & SLEEP_TYPE) >> 10;
                return bits & SLEEP_ENABLE != 0 && sleep_type == u16::from(S5_SLEEP_TYPE);
            }
            0x20..GPE0_ENABLE => {
                if let Some(byte) = slot(&mut state.gpe_status, offset - 0x20) {
                    *byte &= !value;
                }
            }
            GPE0_ENABLE..0x30 => {
                if let Some(byte) = slot(&mut state.gpe_enable, offset - GPE0_ENABLE) {
                    *byte = value;
                }
            }
            _ => {}
        }
        false
    }
}

fn byte_at(bytes: &[u8; 8], index: u64) -> u8 {
    usize::try_from(index)
        .ok()
        .and_then(|i| bytes.get(i))
        .copied()
        .unwrap_or_default()
}

fn slot(bytes: &mut [u8; 8], index: u64) -> Option<&mut u8> {
    bytes.get_mut(usize::try_from(index).ok()?)
}

/// The 24-bit PM timer after `elapsed`.
fn pm_timer(elapsed: Duration) -> u32 {
    let ticks = elapsed.as_nanos() * u128::from(PM_TIMER_HZ) / 1_000_000_000;
    u32::try_from(ticks & 0xff_ffff).unwrap_or_default()
}

impl BusDevice for AcpiPm {
    fn name(&self) -> &str {
        "acpi-pm"
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        let timer = pm_timer(self.start.elapsed());
        // Guests poll the timer in tight loops: it needs no lock.
        if let (8, [a, b, c, d]) = (offset, &mut *data) {
            [*a, *b, *c, *d] = timer.to_le_bytes();
            return;
        }
        let state = self.state.lock();
        for (at, byte) in (offset..).zip(data) {
            *byte = self.read_byte(&state, timer, at);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut state = self.state.lock();
        let mut power_off = false;
        for (at, byte) in (offset..).zip(data) {
            power_off |= Self::write_byte(&mut state, at, *byte);
        }
        self.update_sci(&mut state);
        drop(state);
        if power_off {
            self.events.power_off();
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io;
    use std::sync::atomic::{AtomicBool, Ordering};

    use proptest::prelude::*;

    use super::*;
    use crate::legacy::reset::tests::Requests;

    #[derive(Debug, Default)]
    pub(crate) struct Level(AtomicBool);

    impl IrqLine for Level {
        fn set_level(&self, high: bool) -> io::Result<()> {
            self.0.store(high, Ordering::Relaxed);
            Ok(())
        }
    }

    impl Level {
        fn high(&self) -> bool {
            self.0.load(Ordering::Relaxed)
        }
    }

    /// A PM block, its interrupt, and what the guest asked it for.
    pub(crate) fn block() -> (AcpiPm, Arc<Level>, Arc<Requests>) {
        let (line, events) = (Arc::new(Level::default()), Arc::new(Requests::default()));
        let pm = AcpiPm::new(Arc::clone(&line) as _, Arc::clone(&events) as _);
        (pm, line, events)
    }

    /// Whether one of the first eight general-purpose events is pending.
    pub(crate) fn gpe_is_pending(pm: &AcpiPm, number: u8) -> bool {
        let mut status = [0];
        pm.read(0x20, &mut status);
        status[0] & 1 << number != 0
    }

    fn read16(pm: &AcpiPm, offset: u64) -> u16 {
        let mut data = [0xff; 2];
        pm.read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    #[test]
    fn power_button_reaches_a_guest_that_listens() {
        let (pm, line, _) = block();
        pm.press_power_button();
        assert_eq!(read16(&pm, 0), POWER_BUTTON);
        assert!(!line.high() && !pm.power_button_enabled());
        pm.write(2, &POWER_BUTTON.to_le_bytes());
        assert!(line.high() && pm.power_button_enabled());
        pm.write(0, &0xfeff_u16.to_le_bytes());
        assert!(line.high(), "only its own bit clears it");
        pm.write(0, &POWER_BUTTON.to_le_bytes());
        assert!(!line.high());
        assert_eq!(read16(&pm, 0), 0);
        pm.press_power_button();
        assert!(line.high());
        pm.write(3, &[0]);
        assert!(!line.high(), "masked by a byte write");
    }

    #[test]
    fn gpes_have_their_status_and_enable() {
        let (pm, line, _) = block();
        pm.raise_gpe(63);
        pm.raise_gpe(64);
        assert!(!line.high());
        pm.write(0x28, &[0xff; 8]);
        assert!(line.high());
        let mut status = [0; 8];
        pm.read(0x20, &mut status);
        assert_eq!(status, [0, 0, 0, 0, 0, 0, 0, 0x80]);
        pm.write(0x27, &[0x80]);
        assert!(!line.high());
    }

    #[test]
    fn only_s5_powers_off() {
        let (pm, _, events) = block();
        let off = || events.power_off.load(Ordering::Relaxed);
        assert_eq!(read16(&pm, 4), SCI_EN, "ACPI mode from the start");
        pm.write(4, &(5_u16 << 10 | SLEEP_ENABLE).to_le_bytes());
        assert_eq!(off(), 0, "S-state unknown");
        assert_eq!(read16(&pm, 4), SCI_EN | 5 << 10, "SLP_EN reads as zero");
        pm.write(4, &0_u16.to_le_bytes());
        assert_eq!(off(), 0);
        pm.write(4, &SLEEP_ENABLE.to_le_bytes());
        assert_eq!(off(), 1);
        pm.write(5, &[0x20]);
        assert_eq!(off(), 2);
    }

    #[test]
    fn timer_counts_real_time_in_24_bits() {
        assert_eq!(pm_timer(Duration::ZERO), 0);
        assert_eq!(pm_timer(Duration::from_secs(1)), PM_TIMER_HZ);
        assert_eq!(
            u64::from(pm_timer(Duration::from_secs(1000))),
            1000 * u64::from(PM_TIMER_HZ) % (1 << 24)
        );
        let (pm, _, _) = block();
        let mut data = [0; 4];
        pm.read(8, &mut data);
        let before = u32::from_le_bytes(data);
        std::thread::sleep(Duration::from_millis(20));
        pm.read(8, &mut data);
        let ticks = u32::from_le_bytes(data) - before;
        assert!(ticks >= PM_TIMER_HZ / 50, "{ticks} ticks in 20 ms");
    }

    #[test]
    fn firmware_sees_smm_as_set_up() {
        let (pm, _, _) = block();
        pm.write(0x30, &[0; 4]);
        let mut data = [0xff; 4];
        pm.read(0x30, &mut data);
        assert_eq!(u32::from_le_bytes(data), 1 << 5);
    }

    proptest! {
        #[test]
        fn the_line_always_follows_the_registers(
            accesses in prop::collection::vec((0u64..128, prop::collection::vec(any::<u8>(), 1..8), 0u8..80), 1..60),
        ) {
            let (pm, line, _) = block();
            for (offset, data, gpe) in accesses {
                if gpe < 70 { pm.raise_gpe(gpe) } else { pm.press_power_button() }
                pm.write(offset, &data);
                let mut back = data.clone();
                pm.read(offset, &mut back);
                let mut gpes = [0; 16];
                pm.read(0x20, &mut gpes);
                let gpe = (0..8).any(|i| gpes[i] & gpes[8 + i] != 0);
                prop_assert_eq!(line.high(), gpe || read16(&pm, 0) & read16(&pm, 2) != 0);
            }
        }
    }
}
