//! MC146818 real-time clock and CMOS RAM, ports 0x70 (index) and 0x71 (data), as firmware and kernels use them.
//!
//! Served on vCPU threads. Time is the host's plus an offset that the guest moves by setting the clock; nothing else is behind it.
//! The index register can be read back, bit 7 (the NMI mask) included; it selects by its other seven bits. There is no update cycle
//! to wait for (UIP reads 0) and no IRQ 8: alarm, periodic and update interrupts never come, and register C reads 0, so the DSDT
//! gives the clock no interrupt.
//!
//! Content outlives a reset of the machine: keep the device, and call [`Cmos::reset`].

use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use super::civil::Civil;
use crate::bus::BusDevice;

/// The first of the two ports.
pub const CMOS_PORT: u64 = 0x70;
/// Their number.
pub const CMOS_PORTS: u64 = 2;

const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const REGISTER_A: u8 = 0x0a;
const REGISTER_B: u8 = 0x0b;
const REGISTER_C: u8 = 0x0c;
const REGISTER_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;

/// Register A: update in progress.
const UIP: u8 = 1 << 7;
/// Register A at power-on: 32.768 kHz, divider running.
const REGISTER_A_DEFAULT: u8 = 0x26;
/// Register B: updates are held, the time registers can be set.
const SET: u8 = 1 << 7;
/// Register B: numbers are binary rather than BCD.
const BINARY: u8 = 1 << 2;
/// Register B: hours are 0 to 23 rather than 1 to 12 with bit 7 for the afternoon.
const HOURS_24: u8 = 1 << 1;
/// Register D: RAM and time are valid, the battery is good.
const VALID: u8 = 1 << 7;
/// Hours register in 12-hour mode: afternoon.
const PM: u8 = 1 << 7;

/// Real-time clock and CMOS RAM.
#[derive(Debug)]
pub struct Cmos {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    index: u8,
    ram: [u8; 128],
    /// Guest time minus host time, in seconds.
    offset: i64,
    /// The time registers while [`SET`] holds them, and whether the guest wrote to them.
    held: Option<(Civil, bool)>,
}

impl Cmos {
    /// With the memory sizes of the machine in it (`below_4g` starts at address 0; both in bytes) and the clock `offset_seconds` ahead
    /// of UTC.
    #[must_use]
    pub fn new(below_4g: u64, above_4g: u64, offset_seconds: i64) -> Self {
        let mut ram = [0; 128];
        let mut put = |at: usize, bytes: &[u8]| {
            for (slot, byte) in ram.iter_mut().skip(at).zip(bytes) {
                *slot = *byte;
            }
        };
        put(usize::from(REGISTER_A), &[REGISTER_A_DEFAULT, HOURS_24]);
        // Conventional memory in KiB.
        put(0x15, &clamp16(below_4g >> 10, 640));
        // Memory above 1 MiB in KiB, in its two traditional places.
        let extended = clamp16(below_4g.saturating_sub(1 << 20) >> 10, u16::MAX);
        put(0x17, &extended);
        put(0x30, &extended);
        // Memory from 16 MiB to 4 GiB, and above 4 GiB, in 64 KiB.
        let high = below_4g.saturating_sub(16 << 20) >> 16;
        put(0x34, &clamp16(high, u16::MAX));
        let above = (above_4g >> 16).min(0xff_ffff).to_le_bytes();
        put(0x5b, above.get(..3).unwrap_or_default());
        Self {
            state: Mutex::new(State {
                index: 0,
                ram,
                offset: offset_seconds,
                held: None,
            }),
        }
    }

    /// What a machine reset does: RAM and time stay; interrupt enables and held updates go (MC146818A, RESET pin).
    pub fn reset(&self) {
        let mut state = self.state.lock();
        state.index = 0;
        state.write_register_b(host_seconds(), HOURS_24);
    }

    /// Guest time minus host time in seconds, as the guest has set it.
    #[must_use]
    pub fn offset_seconds(&self) -> i64 {
        self.state.lock().offset
    }
}

fn clamp16(value: u64, most: u16) -> [u8; 2] {
    u16::try_from(value)
        .unwrap_or(u16::MAX)
        .min(most)
        .to_le_bytes()
}

/// Seconds since 1970 on the host's clock.
fn host_seconds() -> i64 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        Err(_) => 0,
    }
}

impl State {
    fn selected(&self) -> u8 {
        self.index & 0x7f
    }

    fn register_b(&self) -> u8 {
        self.cell(REGISTER_B)
    }

    fn cell(&self, index: u8) -> u8 {
        self.ram
            .get(usize::from(index))
            .copied()
            .unwrap_or_default()
    }

    /// The time the registers show.
    fn civil(&self, now: i64) -> Civil {
        self.held.map_or_else(
            || Civil::from_unix(now.saturating_add(self.offset)),
            |(held, _)| held,
        )
    }

    fn read(&self, now: i64) -> u8 {
        let index = self.selected();
        let time = self.civil(now);
        match index {
            SECONDS => self.encode(time.second),
            MINUTES => self.encode(time.minute),
            HOURS => self.encode_hour(time.hour),
            WEEKDAY => self.encode(time.weekday()),
            DAY => self.encode(time.day),
            MONTH => self.encode(time.month),
            YEAR => self.encode(time.year_of_century()),
            CENTURY => self.encode(time.century()),
            REGISTER_A => self.cell(REGISTER_A) & !UIP,
            REGISTER_C => 0,
            REGISTER_D => VALID,
            _ => self.cell(index),
        }
    }

    fn write(&mut self, now: i64, value: u8) {
        let index = self.selected();
        match index {
            SECONDS | MINUTES | HOURS | DAY | MONTH | YEAR | CENTURY => {
                self.set_time(now, index, value);
            }
            // The weekday follows from the date; C and D cannot be written.
            WEEKDAY | REGISTER_C | REGISTER_D => {}
            REGISTER_A => self.put(REGISTER_A, value & !UIP),
            REGISTER_B => self.write_register_b(now, value),
            _ => self.put(index, value),
        }
    }

    fn put(&mut self, index: u8, value: u8) {
        if let Some(slot) = self.ram.get_mut(usize::from(index)) {
            *slot = value;
        }
    }

    fn write_register_b(&mut self, now: i64, value: u8) {
        if value & SET != 0 {
            self.held = Some(self.held.unwrap_or_else(|| (self.civil(now), false)));
        } else if let Some((time, true)) = self.held.take() {
            self.offset = time.to_unix().saturating_sub(now);
        }
        self.put(REGISTER_B, value);
    }

    /// Changes one field of the time; one that makes no sense is ignored.
    fn set_time(&mut self, now: i64, index: u8, value: u8) {
        let mut time = self.civil(now);
        let number = if index == HOURS {
            self.decode_hour(value)
        } else {
            self.decode(value)
        };
        let Some(number) = number else { return };
        let valid = match index {
            SECONDS => time.set_second(number),
            MINUTES => time.set_minute(number),
            HOURS => time.set_hour(number),
            DAY => time.set_day(number),
            MONTH => time.set_month(number),
            YEAR => time.set_year_of_century(number),
            CENTURY => time.set_century(number),
            _ => false,
        };
        if !valid {
            return;
        }
        match &mut self.held {
            Some(held) => *held = (time, true),
            None => {
                let before = Civil::from_unix(now.saturating_add(self.offset)).to_unix();
                let moved = time.to_unix().saturating_sub(before);
                self.offset = self.offset.saturating_add(moved);
            }
        }
    }

    /// A number up to 99 as register B wants it.
    fn encode(&self, value: u8) -> u8 {
        if self.register_b() & BINARY != 0 {
            value
        } else {
            ((value / 10) << 4) | (value % 10)
        }
    }

    fn decode(&self, value: u8) -> Option<u8> {
        let (tens, units) = (value >> 4, value & 0xf);
        if self.register_b() & BINARY != 0 {
            (value < 100).then_some(value)
        } else {
            (tens < 10 && units < 10).then_some(tens * 10 + units)
        }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.register_b() & HOURS_24 != 0 {
            return self.encode(hour);
        }
        let twelve = match hour % 12 {
            0 => 12,
            hour => hour,
        };
        self.encode(twelve) | if hour >= 12 { PM } else { 0 }
    }

    fn decode_hour(&self, value: u8) -> Option<u8> {
        if self.register_b() & HOURS_24 != 0 {
            return self.decode(value);
        }
        let twelve = self.decode(value & !PM)?;
        let afternoon = if value & PM != 0 { 12 } else { 0 };
        (1..=12).contains(&twelve).then(|| twelve % 12 + afternoon)
    }
}

impl BusDevice for Cmos {
    fn name(&self) -> &str {
        "cmos"
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        let state = self.state.lock();
        for (at, byte) in (offset..).zip(data) {
            match at {
                0 => *byte = state.index,
                1 => *byte = state.read(host_seconds()),
                _ => {}
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut state = self.state.lock();
        for (at, byte) in (offset..).zip(data) {
            match at {
                0 => state.index = *byte,
                1 => state.write(host_seconds(), *byte),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 2024-02-29 23:59:58 UTC, a Thursday.
    const LEAP: i64 = 1_709_251_198;

    impl State {
        fn get(&mut self, now: i64, index: u8) -> u8 {
            self.index = index;
            self.read(now)
        }

        fn set(&mut self, now: i64, index: u8, value: u8) {
            self.index = index;
            self.write(now, value);
        }
    }

    fn state() -> State {
        Cmos::new(2 << 30, 3 << 30, 0).state.into_inner()
    }

    #[test]
    fn tells_the_time_in_every_format() {
        let mut cmos = state();
        let all = |cmos: &mut State, now| {
            [SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY].map(|i| cmos.get(now, i))
        };
        assert_eq!(
            all(&mut cmos, LEAP),
            [0x58, 0x59, 0x23, 5, 0x29, 2, 0x24, 0x20]
        );
        assert_eq!(all(&mut cmos, LEAP + 2), [0, 0, 0, 6, 1, 3, 0x24, 0x20]);
        cmos.set(LEAP, REGISTER_B, BINARY);
        assert_eq!(
            all(&mut cmos, LEAP),
            [58, 59, 11 | PM, 5, 29, 2, 24, 20],
            "12 hours, binary"
        );
        assert_eq!(cmos.get(LEAP + 2, HOURS), 12, "midnight");
        cmos.set(LEAP, REGISTER_B, 0);
        assert_eq!(cmos.get(LEAP + 2 + 12 * 3600, HOURS), 0x12 | PM, "noon");
    }

    #[test]
    fn setting_the_clock_keeps_an_offset() {
        let mut cmos = state();
        // As Linux does it: hold, set, let go.
        cmos.set(LEAP, REGISTER_B, SET | HOURS_24);
        for (index, value) in [
            (YEAR, 0x30),
            (MONTH, 0x12),
            (DAY, 0x31),
            (HOURS, 0x01),
            (MINUTES, 0x02),
            (SECONDS, 0x03),
        ] {
            cmos.set(LEAP, index, value);
        }
        assert_eq!(cmos.get(LEAP + 100, SECONDS), 3, "held");
        cmos.set(LEAP + 5, REGISTER_B, HOURS_24);
        assert_eq!(cmos.get(LEAP + 5, SECONDS), 3);
        assert_eq!(cmos.get(LEAP + 6, SECONDS), 4);
        assert_eq!(cmos.get(LEAP + 5, YEAR), 0x30);
        assert_eq!(cmos.get(LEAP + 5, MONTH), 0x12);
        // 2030-12-31 01:02:03 UTC.
        assert_eq!(cmos.offset, 1_924_909_323 - (LEAP + 5));
    }

    #[test]
    fn firmware_writing_the_century_back_changes_nothing() {
        let mut cmos = state();
        cmos.set(LEAP, CENTURY, 0x20);
        assert_eq!(cmos.offset, 0);
        cmos.set(LEAP, REGISTER_B, SET | HOURS_24);
        cmos.set(LEAP + 50, REGISTER_B, HOURS_24);
        assert_eq!(cmos.offset, 0, "holding alone does not stop the clock");
        cmos.set(LEAP, MINUTES, 0x58);
        assert_eq!(cmos.offset, -60, "a write without SET counts at once");
    }

    #[test]
    fn status_registers_are_what_firmware_waits_for() {
        let mut cmos = state();
        for index in 0..=u8::MAX {
            cmos.set(LEAP, index, 0xff);
        }
        assert_eq!(cmos.get(LEAP, REGISTER_A) & UIP, 0);
        assert_eq!(cmos.get(LEAP, REGISTER_C), 0);
        assert_eq!(cmos.get(LEAP, 0x80 | REGISTER_D), 0x80);
        assert_eq!(cmos.get(LEAP, 0x0f), 0xff);
    }

    #[test]
    fn memory_sizes_ports_and_reset() {
        let cmos = Cmos::new(2 << 30, 3 << 30, 0);
        let read = |index: u8| {
            cmos.write(0, &[0x80 | index]);
            let mut data = [0];
            cmos.read(1, &mut data);
            data[0]
        };
        assert_eq!([read(0x34), read(0x35)], 0x7f00_u16.to_le_bytes());
        assert_eq!([read(0x5b), read(0x5c), read(0x5d)], [0, 0xc0, 0]);
        assert_eq!([read(0x15), read(0x16)], 640_u16.to_le_bytes());
        assert_eq!([read(0x30), read(0x31)], [0xff; 2]);
        // Index and data in one 16-bit write; the index reads back.
        cmos.write(0, &[0x8f, 0x0a]);
        let mut data = [0; 2];
        cmos.read(0, &mut data);
        assert_eq!(data, [0x8f, 0x0a]);
        cmos.write(0, &[0x0b, 0x70]);
        cmos.reset();
        assert_eq!(read(0x0f), 0x0a, "content survives");
        assert_eq!(read(REGISTER_B), HOURS_24);
        let small = Cmos::new(8 << 20, 0, 0).state.into_inner();
        assert_eq!([small.ram[0x34], small.ram[0x35]], [0, 0]);
        assert_eq!([small.ram[0x30], small.ram[0x31]], 7168_u16.to_le_bytes());
    }

    proptest! {
        #[test]
        fn any_accesses_leave_a_valid_time(
            start in any::<i64>(),
            accesses in prop::collection::vec((any::<u8>(), any::<u8>(), 0i64..100_000), 1..100),
        ) {
            let mut cmos = state();
            cmos.offset = start;
            let mut now = LEAP;
            for (index, value, passed) in accesses {
                now += passed;
                cmos.set(now, index % 0x40, value);
                cmos.get(now, index);
                let time = cmos.civil(now);
                prop_assert!(time.second < 60 && time.minute < 60 && time.hour < 24);
                prop_assert!((1..=31).contains(&time.day) && (1..=12).contains(&time.month));
                prop_assert!((1..=7).contains(&time.weekday()) && time.century() < 100);
            }
        }

        #[test]
        fn a_time_set_is_the_time_read(when in 0i64..253_402_300_800, format in 0u8..4, now in 0i64..1 << 33) {
            let mut cmos = state();
            let format = format << 1;
            let mut source = state();
            source.set(0, REGISTER_B, format);
            cmos.set(now, REGISTER_B, SET | format);
            for index in [YEAR, CENTURY, MONTH, DAY, HOURS, MINUTES, SECONDS] {
                let value = source.get(when, index);
                cmos.set(now, index, value);
            }
            cmos.set(now, REGISTER_B, format);
            prop_assert_eq!(cmos.offset, when - now);
        }
    }
}
