//! The registers that place things: ECAM (the host bridge's PCIEXBAR) and the power-management ports (the LPC bridge's PMBASE); and those
//! that a real chipset has and this one stores at most (PAM, SMRAM, RCBA, PIRQ).
//!
//! RAM and what answers already always win; what finds its place taken is nowhere, until it is moved again. After each case everything is
//! put back to where the guest had it, and must answer there. The guest's kernel does without in between: it reads these ports
//! when it is told of an event, and there is none.

use super::super::driver::register;
use super::super::machine::{Physical, Ports};
use super::super::rig::{high, low};
use super::super::{Attack, Case, Expect, Rig, Stop};
use super::{Noise, ONCE, check, same, storm};

use Expect::Serves;

pub(super) const CASES: &[Case] = &[
    Case::new("ecam-over-ram", ONCE, Serves, |rig| {
        with(rig, ecam_over_ram)
    }),
    Case::new("ecam-over-everything-below-4-gib", ONCE, Serves, |rig| {
        with(rig, ecam_over_everything)
    }),
    Case::new("ecam-over-a-bar", ONCE, Serves, |rig| {
        with(rig, ecam_over_a_bar)
    }),
    Case::new("ecam-moved-through-itself", ONCE, Serves, |rig| {
        with(rig, ecam_through_itself)
    }),
    Case::new("ecam-off-and-of-no-length", ONCE, Serves, |rig| {
        with(rig, ecam_off)
    }),
    Case::new("pciexbar-with-noise", ONCE, Serves, |rig| {
        with(rig, pciexbar_noise)
    }),
    Case::new("pm-ports-over-every-other-port", ONCE, Serves, |rig| {
        with(rig, pm_everywhere)
    }),
    Case::new("pmbase-with-noise", ONCE, Serves, |rig| {
        with(rig, pmbase_noise)
    }),
    Case::new("pam-and-smram", ONCE, Serves, |rig| {
        with(rig, pam_and_smram)
    }),
    Case::new("rcba-and-pirq", ONCE, Serves, |rig| {
        with(rig, rcba_and_pirq)
    }),
    Case::new("bridges-overwritten", ONCE, Serves, |rig| {
        with(rig, bridges_overwritten)
    }),
    Case::new("storm-of-moves", ONCE, Serves, |rig| with(rig, moves)),
];

/// Where a function is, for the configuration port.
const HOST_BRIDGE: u32 = 0;
const LPC_BRIDGE: u32 = 0x1f << 11;

/// The host bridge's.
const PCIEXBAR: u16 = 0x60;
/// The LPC bridge's.
const PMBASE: u16 = 0x40;
const ACPI_CNTL: u16 = 0x44;
const RCBA: u16 = 0xf0;

/// Vendor and device of the host bridge.
const IDENTITY: u64 = 0x29c0_8086;
/// PCIEXBAR's enable bit; the two above it choose the length.
const ENABLE: u64 = 1;
const LENGTHS: [(u64, u64); 3] = [(0, 256 << 20), (1, 128 << 20), (2, 64 << 20)];
/// A length that there is none of.
const NO_LENGTH: u64 = 3;
/// Somewhere that nothing uses, wherever firmware has put things: room for ECAM.
const FREE: u64 = 0xd000_0000;
/// Of the timer in the power-management block; it counts 24 bits.
const PM_TIMER: u32 = 8;
const PM_TIMER_MAX: u32 = 0xff_ffff;
/// What the power-management ports are moved by.
const PM_STEP: usize = 0x80;
/// Ports behind all devices that have a fixed place, and before what PCI may use.
const NOBODYS_PORTS: std::ops::Range<u32> = 0x1000..0x6000;

/// The two bridges, by the configuration ports, and how they were found.
pub(super) struct Chipset<'a> {
    ports: &'a dyn Ports,
    physical: &'a dyn Physical,
    host: Vec<u32>,
    lpc: Vec<u32>,
}

/// Runs an attack on the chipset and puts everything back, whatever came of it.
pub(super) fn with<'a>(
    rig: &mut Rig<'a>,
    attack: impl FnOnce(&mut Rig<'a>, &Chipset<'a>) -> Attack,
) -> Attack {
    let chipset = Chipset::find(rig)?;
    let result = attack(rig, &chipset);
    let restored = chipset.restore();
    result.and(restored)
}

impl<'a> Chipset<'a> {
    fn find(rig: &Rig<'a>) -> Result<Self, Stop> {
        let mut this = Self {
            ports: super::ports(rig)?,
            physical: super::physical(rig)?,
            host: Vec::new(),
            lpc: Vec::new(),
        };
        this.host = this.all(HOST_BRIDGE);
        this.lpc = this.all(LPC_BRIDGE);
        this.is_home()?;
        Ok(this)
    }

    fn all(&self, function: u32) -> Vec<u32> {
        let registers = (0..0x100).step_by(4);
        registers.map(|at| self.read(function, at, 4)).collect()
    }

    fn address(&self, function: u32, register: u16) -> u16 {
        let address = 0x8000_0000 | function | u32::from(register & 0xfc);
        self.ports.write(0xcf8, 4, address);
        0xcfc + (register & 3)
    }

    fn read(&self, function: u32, register: u16, width: usize) -> u32 {
        let port = self.address(function, register);
        self.ports.read(port, width)
    }

    fn write(&self, function: u32, register: u16, width: usize, value: u32) {
        let port = self.address(function, register);
        self.ports.write(port, width, value);
    }

    /// Moves ECAM: off, then the upper half, then the lower with everything.
    pub(super) fn place_ecam(&self, base: u64, length: u64) {
        let value = base | length << 1 | ENABLE;
        self.write(HOST_BRIDGE, PCIEXBAR, 4, 0);
        self.write(HOST_BRIDGE, PCIEXBAR + 4, 4, high(value));
        self.write(HOST_BRIDGE, PCIEXBAR, 4, low(value));
    }

    /// Moves the power-management ports.
    pub(super) fn place_pm(&self, base: u32) {
        self.write(LPC_BRIDGE, PMBASE, 4, base | 1);
    }

    /// Where the guest had ECAM.
    fn ecam(&self) -> u64 {
        let [low, high] = [0, 1].map(|half| self.host[usize::from(PCIEXBAR / 4) + half]);
        (u64::from(high) << 32 | u64::from(low)) & !0x3ff_ffff
    }

    /// Where the guest had the power-management ports.
    fn pm(&self) -> u32 {
        self.lpc[usize::from(PMBASE / 4)] & 0xff80
    }

    fn pm_timer(&self, base: u32) -> u32 {
        let port = u16::try_from(base + PM_TIMER).unwrap_or(u16::MAX);
        self.ports.read(port, 4)
    }

    fn answers_at(&self, ecam: u64) -> bool {
        self.physical.read(ecam, 4) == Some(IDENTITY)
    }

    /// Everything answers where it was found.
    fn is_home(&self) -> Attack {
        let ecam = self.ecam();
        check(self.answers_at(ecam), || {
            format!("there is no ECAM at {ecam:#x}")
        })?;
        let timer = self.pm_timer(self.pm());
        check(timer <= PM_TIMER_MAX, || {
            format!(
                "the power-management timer at {:#x} is {timer:#x}",
                self.pm()
            )
        })
    }

    /// Writes back what was found, what places things last.
    fn restore(&self) -> Attack {
        self.write(HOST_BRIDGE, PCIEXBAR, 4, 0);
        for (function, found) in [(HOST_BRIDGE, &self.host), (LPC_BRIDGE, &self.lpc)] {
            for (register, value) in (0..0x100).step_by(4).zip(found) {
                if function != HOST_BRIDGE || register != PCIEXBAR {
                    self.write(function, register, 4, *value);
                }
            }
        }
        let low = self.host[usize::from(PCIEXBAR / 4)];
        self.write(HOST_BRIDGE, PCIEXBAR, 4, low);
        same("the host bridge", self.all(HOST_BRIDGE), self.host.clone())?;
        same("the LPC bridge", self.all(LPC_BRIDGE), self.lpc.clone())?;
        self.is_home()
    }
}

fn ecam_over_ram(rig: &mut Rig<'_>, chipset: &Chipset<'_>) -> Attack {
    let address = rig.allocate(0x1000, 4096)?;
    for (length, bytes) in LENGTHS {
        // At address 0 it is off.
        chipset.place_ecam(address & !(bytes - 1), length);
        rig.ram().write(address, &[0x5a; 0x1000]);
        check(rig.bytes(address, 0x1000) == [0x5a; 0x1000], || {
            "RAM below ECAM is not RAM any more".to_owned()
        })?;
        rig.serve()?;
    }
    Ok(())
}

/// The local APIC's version and the reset vector, or what is there in their place.
fn landmarks(chipset: &Chipset<'_>) -> [Option<u64>; 2] {
    [0xfee0_0030, 0xffff_fff0].map(|at| chipset.physical.read(at, 4))
}

fn ecam_over_everything(rig: &mut Rig<'_>, chipset: &Chipset<'_>) -> Attack {
    let before = landmarks(chipset);
    for (length, bytes) in LENGTHS {
        for base in (0..1 << 32).step_by(usize::try_from(bytes).unwrap_or(usize::MAX)) {
            chipset.place_ecam(base, length);
            same("what is below ECAM", landmarks(chipset), before)?;
            rig.serve()?;
        }
    }
    Ok(())
}

/// What was there first stays; ECAM is nowhere, and comes when its place is free and it is placed again.
fn ecam_over_a_bar(rig: &mut Rig<'_>, chipset: &Chipset<'_>) -> Attack {
    let bar = FREE + 0x800_0000;
    rig.move_bar(bar);
    let queues = || {
        let at = bar + rig.driver.layout.common + register::NUM_QUEUES;
        chipset.physical.read(at, 2)
    };
    let before = queues();
    chipset.place_ecam(FREE, 0);
    let (during, ecam) = (queues(), chipset.answers_at(FREE));
    rig.move_bar(rig.home);
    chipset.place_ecam(FREE, 0);
    let after = chipset.answers_at(FREE);
    check(before != Some(0xffff), || {
        "the BAR does not answer".to_owned()
    })?;
    same("what the BAR says", during, before)?;
    same("whether ECAM is there, then", (ecam, after), (false, true))
}

/// The register is written through the window that it moves.
fn ecam_through_itself(rig: &mut Rig<'_>, chipset: &Chipset<'_>) -> Attack {
    let (mut here, mut there) = (chipset.ecam(), FREE);
    let physical = chipset.physical;
    for _ in 0..64 {
        physical.write(here + u64::from(PCIEXBAR), 4, there | ENABLE);
        same(
            "whether ECAM is where it was and where it goes",
            (chipset.answers_at(here), chipset.answers_at(there)),
            (false, true),
        )?;
        (here, there) = (there, here);
    }
    // All at once, with the length: to where it is only half aligned.
    physical.write(here + u64::from(PCIEXBAR), 8, (FREE + 0x400_0000) | 0b101);
    check(chipset.answers_at(FREE + 0x400_0000), || {
        "ECAM of 64 MiB does not answer".to_owned()
    })?;
    Ok(rig.serve()?)
}

fn ecam_off(rig: &mut Rig<'_>, chipset: &Chipset<'_>) -> Attack {
    let home = chipset.ecam();
    let gone = |what: &str| {
        let read = chipset.physical.read(home, 4);
        same(what, read, Some(u64::from(u32::MAX)))
    };
    chipset.write(HOST_BRIDGE, PCIEXBAR, 1, 0);
    gone("ECAM that is off")?;
    chipset.place_ecam(home, NO_LENGTH);
    gone("ECAM of no length")?;
    chipset.place_ecam(0, 0);
    gone("ECAM at address 0")?;
    Ok(rig.serve()?)
}

fn pciexbar_noise(rig: &mut Rig<'_>, chipset: &Chipset<'_>) -> Attack {
    let mut noise = Noise(20);
    storm(rig.machine, |step| {
        let width = 1 << noise.below(3);
        let register = PCIEXBAR + u16::try_from(noise.below(8)).unwrap_or(0);
        if usize::from(register & 3) + width <= 4 {
            chipset.write(
                HOST_BRIDGE,
                register,
                width,
                low(noise.next() & 0xffff_ffff),
            );
        }
        let upper = chipset.read(HOST_BRIDGE, PCIEXBAR + 4, 4);
        check(upper <= 0xf, || format!("ECAM at {upper:#x} times 4 GiB"))?;
        if step % 32 == 0 {
            rig.serve()?;
        }
        Ok(())
    })?;
    Ok(())
}

fn pm_everywhere(rig: &mut Rig<'_>, chipset: &Chipset<'_>) -> Attack {
    for base in (0..0x1_0000).step_by(PM_STEP) {
        chipset.place_pm(base);
        if NOBODYS_PORTS.contains(&base) {
            let timers = [base, chipset.pm()].map(|at| chipset.pm_timer(at) <= PM_TIMER_MAX);
            let what = format!("whether the timer is at {base:#x} and where it was");
            same(&what, timers, [true, false])?;
        }
        if base % 0x800 == 0 {
            rig.serve()?;
        }
    }
    // Off, it is nowhere.
    chipset.place_pm(chipset.pm());
    chipset.write(LPC_BRIDGE, ACPI_CNTL, 1, 0x7f);
    same("the timer", chipset.pm_timer(chipset.pm()), u32::MAX)
}

fn pmbase_noise(rig: &mut Rig<'_>, chipset: &Chipset<'_>) -> Attack {
    let mut noise = Noise(21);
    storm(rig.machine, |step| {
        let width = 1 << noise.below(3);
        let register = PMBASE + u16::try_from(noise.below(8)).unwrap_or(0);
        if usize::from(register & 3) + width <= 4 {
            chipset.write(LPC_BRIDGE, register, width, low(noise.next() & 0xffff_ffff));
        }
        let base = chipset.read(LPC_BRIDGE, PMBASE, 4);
        check(base & !0xff80 == 1, || format!("PMBASE is {base:#x}"))?;
        if step % 32 == 0 {
            rig.serve()?;
        }
        Ok(())
    })?;
    Ok(())
}

/// On a real chipset they take RAM below 1 MiB away and bring it back. Here they are not there.
fn pam_and_smram(_: &mut Rig<'_>, chipset: &Chipset<'_>) -> Attack {
    let seen = || -> Vec<Option<u64>> {
        let pages = (0xa_0000..0x10_0000).step_by(0x1000);
        pages.map(|at| chipset.physical.read(at, 8)).collect()
    };
    let before = seen();
    for value in (0..=0xff).step_by(0x33) {
        for register in 0x90..0xa0 {
            chipset.write(HOST_BRIDGE, register, 1, value);
        }
        same("memory below 1 MiB", seen(), before.clone())?;
    }
    let registers = 0x90 / 4..0xa0 / 4;
    let found = &chipset.host[registers.clone()];
    let now = chipset.all(HOST_BRIDGE);
    same("PAM and SMRAM", &now[registers], found)
}

/// Stored, and nothing comes of it.
fn rcba_and_pirq(rig: &mut Rig<'_>, chipset: &Chipset<'_>) -> Attack {
    let mut noise = Noise(22);
    for place in [0xfed1_c000, 0xfee0_0000, 0xffff_c000, 0, FREE] {
        let before = landmarks(chipset);
        let there = chipset.physical.read(FREE, 4);
        chipset.write(LPC_BRIDGE, RCBA, 4, low(place | ENABLE));
        for register in (0x60..0x64).chain(0x68..0x6c) {
            let value = low(noise.below(0x100));
            chipset.write(LPC_BRIDGE, register, 1, value);
        }
        same("what is at RCBA", landmarks(chipset), before)?;
        same("what is at RCBA", chipset.physical.read(FREE, 4), there)?;
        rig.serve()?;
    }
    Ok(())
}

/// Everything but what places things, which has cases of its own.
fn bridges_overwritten(_: &mut Rig<'_>, chipset: &Chipset<'_>) -> Attack {
    let identity = |function| [0, 8, 0x2c].map(|at| chipset.read(function, at, 4));
    for (function, places) in [(HOST_BRIDGE, PCIEXBAR), (LPC_BRIDGE, PMBASE)] {
        let before = identity(function);
        for (width, value) in [(1, 0xff), (2, 0xffff), (4, u32::MAX), (4, 0)] {
            for register in (0..0x100_u16).step_by(width) {
                if !(places..places + 8).contains(&register) {
                    chipset.write(function, register, width, value);
                }
            }
        }
        same("the bridge's identity", identity(function), before)?;
    }
    Ok(())
}

/// Both, as fast as they go, between free places, taken ones and RAM.
fn moves(rig: &mut Rig<'_>, chipset: &Chipset<'_>) -> Attack {
    let mut noise = Noise(23);
    let places = [chipset.ecam(), FREE, 0xf000_0000, 0x400_0000, 1 << 35];
    storm(rig.machine, |step| {
        let place = places[usize::try_from(step).unwrap_or(0) % places.len()];
        chipset.place_ecam(place, noise.below(4));
        let _ = chipset.physical.read(FREE, 4);
        chipset.place_pm(low(noise.below(0x1_0000)) & 0xff80);
        if step % 32 == 0 {
            rig.serve()?;
        }
        Ok(())
    })?;
    Ok(())
}
