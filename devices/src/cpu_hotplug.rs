//! Hot-plug of CPUs: the registers that the DSDT's methods read when the guest is told that a CPU came or is to go.
//!
//! ```text
//! host                                guest (AML)
//! add, want_back ─── GPE ───▶         NEXT: which CPU has news; SELECT it; STATUS: what news, written back; notifies the processor
//! take_released  ◀── STATUS.EJECT ─── _EJ0: the CPU is offline
//! refusal        ◀── ANSWER ───────── _OST: it does not do as it is asked
//! ```
//!
//! CPUs have numbers, from 0 to one less than the most that the VM may have: the processors' `_UID`. Served on vCPU threads. The guest
//! may read and write what it likes, whole registers or not: a number that no CPU has selects nothing, and a CPU goes only while the
//! host wants it back.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::bus::{BusDevice, read_bytes};
use crate::legacy::acpi_pm::AcpiPm;
use crate::pci::hotplug::HOT_PLUG_EVENT;
use crate::throttle::Throttle;

/// Number of ports: four registers of 4 bytes.
pub const CPU_HOT_PLUG_PORTS: u64 = 16;
/// Offset of the number of the CPU that the others are about, for the DSDT.
pub const SELECT: u16 = 0;
/// Offset of the selected CPU's status, for the DSDT. Of what is written, [`ADDED`] and [`WANTED`] clear themselves, and [`EJECT`] lets
/// go of it.
pub const STATUS: u16 = 4;
/// Offset of the number of the first CPU that is [`ADDED`] or [`WANTED`]; [`NOTHING_NEW`] if none is. For the DSDT.
pub const NEXT: u16 = 8;
/// Offset of the register that takes what the guest answers (a status code of `_OST`) to the wish to have the selected CPU back. Reads
/// as zero. For the DSDT.
pub const ANSWER: u16 = 12;
/// The CPU is there.
pub const PRESENT: u32 = 1 << 0;
/// It came since the guest looked last.
pub const ADDED: u32 = 1 << 1;
/// The host wants it back, which the guest has not seen yet.
pub const WANTED: u32 = 1 << 2;
/// Written when the guest has let go of it.
pub const EJECT: u32 = 1 << 3;
/// No CPU.
pub const NOTHING_NEW: u32 = u32::MAX;

/// Answers that are no refusal: done, and under way (ACPI 6.5 §6.3.5).
const NO_REFUSALS: [u32; 2] = [0, 0x84];

/// Told on a vCPU thread that a CPU may be taken out: leaves a note and returns at once.
pub trait CpuEvents: Send + Sync + fmt::Debug {
    /// [`CpuHotPlug::take_released`] has something.
    fn cpu_released(&self);
}

#[derive(Debug, Clone, Copy, Default)]
struct Cpu {
    present: bool,
    /// Not seen by the guest yet.
    added: bool,
    /// Not seen by the guest yet.
    wanted: bool,
    /// The host waits for it.
    pending: bool,
    /// Let go of, and not taken by the host yet.
    released: bool,
    /// What the guest answered instead of letting go.
    refusal: Option<u32>,
}

impl Cpu {
    fn has_news(&self) -> bool {
        self.added || self.wanted
    }

    fn status(&self) -> u32 {
        let bits = [
            (self.present, PRESENT),
            (self.added, ADDED),
            (self.wanted, WANTED),
        ];
        let set = bits.into_iter().filter(|(is_set, _)| *is_set);
        set.fold(0, |status, (_, bit)| status | bit)
    }
}

#[derive(Debug)]
struct State {
    /// The guest's choice: any number.
    selected: u32,
    cpus: Vec<Cpu>,
}

impl State {
    fn cpu(&mut self, number: u32) -> Option<&mut Cpu> {
        self.cpus.get_mut(usize::try_from(number).ok()?)
    }

    fn selected(&mut self) -> Option<&mut Cpu> {
        self.cpu(self.selected)
    }

    fn next(&self) -> u32 {
        let next = (0u32..).zip(&self.cpus).find(|(_, cpu)| cpu.has_news());
        next.map_or(NOTHING_NEW, |(number, _)| number)
    }
}

/// The registers.
#[derive(Debug)]
pub struct CpuHotPlug {
    pm: Arc<AcpiPm>,
    events: Arc<dyn CpuEvents>,
    state: Mutex<State>,
    log: Throttle,
}

impl CpuHotPlug {
    /// Registers for up to `max` CPUs, of which the first `present` are there; their event goes through `pm`.
    #[must_use]
    pub fn new(present: usize, max: usize, pm: Arc<AcpiPm>, events: Arc<dyn CpuEvents>) -> Self {
        let cpu = |number| Cpu {
            present: number < present,
            ..Cpu::default()
        };
        Self {
            pm,
            events,
            state: Mutex::new(State {
                selected: 0,
                cpus: (0..max).map(cpu).collect(),
            }),
            log: Throttle::new(),
        }
    }

    /// Tells the guest that this CPU is there now.
    pub fn add(&self, number: u32) {
        if let Some(cpu) = self.state.lock().cpu(number) {
            *cpu = Cpu {
                present: true,
                added: true,
                ..Cpu::default()
            };
        }
        self.pm.raise_gpe(HOT_PLUG_EVENT);
    }

    /// Asks the guest to let go of this CPU; asks again if it was asked before. One that is not there is not asked for.
    pub fn want_back(&self, number: u32) {
        if let Some(cpu) = self.state.lock().cpu(number).filter(|cpu| cpu.present) {
            cpu.wanted = true;
            cpu.pending = true;
            cpu.refusal = None;
        }
        self.pm.raise_gpe(HOT_PLUG_EVENT);
    }

    /// Does not want this CPU back any more. Too late (`false`) when the guest has let go of it.
    #[must_use]
    pub fn keep(&self, number: u32) -> bool {
        let mut state = self.state.lock();
        let Some(cpu) = state.cpu(number) else {
            return true;
        };
        cpu.wanted = false;
        cpu.pending = false;
        !cpu.released
    }

    /// Whether the guest has news to look at, for which the event is raised again: one that is just starting may have dropped it.
    pub fn remind(&self) -> bool {
        let unseen = self.state.lock().next() != NOTHING_NEW;
        if unseen {
            self.pm.raise_gpe(HOT_PLUG_EVENT);
        }
        unseen
    }

    /// What the guest answered when it was last asked for this CPU, if it was a refusal: a status code of `_OST`.
    #[must_use]
    pub fn refusal(&self, number: u32) -> Option<u32> {
        self.state.lock().cpu(number)?.refusal
    }

    /// The CPUs that the guest has let go of since the last call.
    #[must_use]
    pub fn take_released(&self) -> Vec<u32> {
        let mut state = self.state.lock();
        let cpus = (0u32..).zip(&mut state.cpus);
        let released =
            cpus.filter_map(|(number, cpu)| std::mem::take(&mut cpu.released).then_some(number));
        released.collect()
    }

    fn write_status(&self, value: u32) {
        let mut state = self.state.lock();
        let number = state.selected;
        let Some(cpu) = state.selected() else {
            return;
        };
        cpu.added &= value & ADDED == 0;
        cpu.wanted &= value & WANTED == 0;
        if value & EJECT == 0 {
            return;
        }
        if cpu.pending {
            *cpu = Cpu {
                released: true,
                ..Cpu::default()
            };
            drop(state);
            self.events.cpu_released();
        } else if let Some(held_back) = self.log.pass() {
            tracing::info!(
                cpu = number,
                held_back,
                "guest lets go of a CPU that nobody wants back; it stays"
            );
        }
    }

    fn answer(&self, code: u32) {
        let mut state = self.state.lock();
        if let Some(cpu) = state.selected().filter(|cpu| cpu.pending) {
            cpu.refusal = Some(code).filter(|code| !NO_REFUSALS.contains(code));
        }
    }
}

impl BusDevice for CpuHotPlug {
    fn name(&self) -> &str {
        "cpu-hot-plug"
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut state = self.state.lock();
        let status = state.selected().map_or(0, |cpu| cpu.status());
        let registers = [state.selected, status, state.next(), 0].map(u32::to_le_bytes);
        drop(state);
        read_bytes(registers.as_flattened(), offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        // The DSDT writes whole registers; nothing else means anything.
        let Ok(value) = <[u8; 4]>::try_from(data).map(u32::from_le_bytes) else {
            return;
        };
        match u16::try_from(offset) {
            Ok(SELECT) => self.state.lock().selected = value,
            Ok(STATUS) => self.write_status(value),
            Ok(ANSWER) => self.answer(value),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use proptest::prelude::*;

    use super::*;
    use crate::legacy::acpi_pm::tests::{block, gpe_is_pending};

    /// How often the host was told that the guest let go of a CPU.
    #[derive(Debug, Default)]
    struct Released(AtomicUsize);

    impl CpuEvents for Released {
        fn cpu_released(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    struct Setup {
        pm: Arc<AcpiPm>,
        released: Arc<Released>,
        registers: CpuHotPlug,
    }

    impl Setup {
        fn new(present: usize, max: usize) -> Self {
            let (pm, released) = (Arc::new(block().0), Arc::<Released>::default());
            let events = Arc::clone(&released) as _;
            let registers = CpuHotPlug::new(present, max, Arc::clone(&pm), events);
            Self {
                pm,
                released,
                registers,
            }
        }

        fn read(&self, register: u16) -> u32 {
            let mut data = [0; 4];
            self.registers.read(register.into(), &mut data);
            u32::from_le_bytes(data)
        }

        fn write(&self, register: u16, value: u32) {
            self.registers.write(register.into(), &value.to_le_bytes());
        }

        fn status(&self, cpu: u32) -> u32 {
            self.write(SELECT, cpu);
            self.read(STATUS)
        }

        fn eject(&self, cpu: u32) {
            self.write(SELECT, cpu);
            self.write(STATUS, EJECT);
        }

        /// Whether the event is pending, and then no longer.
        fn event(&self) -> bool {
            let is_pending = gpe_is_pending(&self.pm, HOT_PLUG_EVENT);
            self.pm.write(0x20, &[0xff]);
            is_pending
        }
    }

    #[test]
    fn the_guest_hears_of_a_new_cpu_once() {
        let setup = Setup::new(1, 4);
        assert_eq!([0, 1, 3].map(|cpu| setup.status(cpu)), [PRESENT, 0, 0]);
        assert_eq!(setup.read(NEXT), NOTHING_NEW);
        setup.registers.add(2);
        setup.registers.add(1);
        assert!(setup.event());
        for cpu in [1, 2] {
            assert!(setup.registers.remind());
            assert!(setup.event());
            assert_eq!(setup.read(NEXT), cpu);
            assert_eq!(setup.status(cpu), PRESENT | ADDED);
            setup.write(STATUS, ADDED);
            assert_eq!(setup.read(STATUS), PRESENT);
        }
        assert_eq!(setup.read(NEXT), NOTHING_NEW);
        assert!(!setup.registers.remind());
        assert!(!setup.event(), "it has seen all");
    }

    #[test]
    fn a_cpu_goes_when_the_guest_lets_go() {
        let setup = Setup::new(2, 2);
        setup.registers.want_back(1);
        assert!(setup.event());
        assert_eq!((setup.read(NEXT), setup.status(1)), (1, PRESENT | WANTED));
        setup.write(STATUS, WANTED);
        assert_eq!((setup.read(NEXT), setup.status(1)), (NOTHING_NEW, PRESENT));
        setup.eject(1);
        assert_eq!(setup.status(1), 0);
        assert_eq!(setup.released.0.load(Ordering::Relaxed), 1);
        assert!(!setup.registers.keep(1), "too late");
        assert_eq!(setup.registers.take_released(), [1]);
        assert!(setup.registers.take_released().is_empty());
        setup.eject(1);
        assert!(setup.registers.take_released().is_empty(), "it is gone");
        setup.registers.add(1);
        assert_eq!(setup.status(1), PRESENT | ADDED);
    }

    #[test]
    fn what_nobody_wants_back_stays() {
        let setup = Setup::new(2, 3);
        for cpu in [0, 1, 2, 3, u32::MAX] {
            setup.eject(cpu);
        }
        setup.registers.want_back(1);
        assert!(setup.registers.keep(1));
        setup.eject(1);
        setup.registers.want_back(2);
        setup.eject(2);
        assert!(setup.registers.take_released().is_empty());
        assert_eq!([0, 1].map(|cpu| setup.status(cpu)), [PRESENT; 2]);
        assert_eq!(setup.released.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_refusal_is_remembered_until_it_is_asked_again() {
        let setup = Setup::new(2, 2);
        let answer = |code| {
            setup.write(SELECT, 1);
            setup.write(ANSWER, code);
            setup.registers.refusal(1)
        };
        assert_eq!(answer(0x80), None, "nobody asked");
        setup.registers.want_back(1);
        assert_eq!(answer(0x82), Some(0x82));
        assert_eq!(setup.status(1) & PRESENT, PRESENT);
        setup.registers.want_back(1);
        assert_eq!(setup.registers.refusal(1), None);
        assert_eq!([answer(0x84), answer(0)], [None; 2], "not refusals");
        assert_eq!(setup.read(ANSWER), 0);
    }

    #[test]
    fn odd_accesses_do_nothing() {
        let setup = Setup::new(1, 2);
        setup.registers.want_back(0);
        setup.registers.write(STATUS.into(), &[8]);
        setup
            .registers
            .write(STATUS.into(), &[8, 0, 0, 0, 0, 0, 0, 0]);
        setup.registers.write(u64::from(STATUS) + 1, &[8, 0, 0, 0]);
        setup.registers.write(u64::MAX, &[8, 0, 0, 0]);
        assert!(setup.registers.take_released().is_empty());
        let mut wide = [0xAA; 8];
        setup.registers.read(12, &mut wide);
        assert_eq!(wide, [0; 8], "nothing beyond the registers");
        setup.registers.read(u64::MAX - 3, &mut wide[..4]);
        assert_eq!(setup.status(u32::MAX), 0);
        assert_eq!(setup.read(SELECT), u32::MAX);
    }

    proptest! {
        #[test]
        fn only_wanted_cpus_are_ever_released(
            steps in prop::collection::vec((0u8..5, 0u64..18, 0u32..6, prop::collection::vec(0u8..16, 1..9)), 0..64),
        ) {
            let setup = Setup::new(2, 4);
            let mut wanted = [false; 4];
            let mut present = [true, true, false, false];
            for (what, offset, cpu, mut data) in steps {
                let known = usize::try_from(cpu).unwrap();
                match what {
                    0 => setup.registers.write(offset, &data),
                    1 => setup.registers.read(offset, &mut data),
                    2 => setup.eject(cpu),
                    3 => {
                        setup.registers.want_back(cpu);
                        if known < 4 && present[known] {
                            wanted[known] = true;
                        }
                    }
                    _ if known < 4 && !present[known] => {
                        setup.registers.add(cpu);
                        present[known] = true;
                    }
                    _ => {}
                }
                for released in setup.registers.take_released() {
                    let released = usize::try_from(released).unwrap();
                    prop_assert!(wanted[released] && present[released]);
                    (wanted[released], present[released]) = (false, false);
                }
            }
        }
    }
}
