//! Calendar arithmetic for the real-time clock: seconds since 1970 to date and time and back (proleptic Gregorian, UTC, years 0 to
//! 9999, no leap seconds). Pure functions.

const DAY_SECONDS: i64 = 86_400;
/// Day 0 of the count, 0000-03-01, in days before 1970-01-01.
const EPOCH_DAYS: i64 = 719_468;
/// Days in 400 years.
const ERA_DAYS: i64 = 146_097;
/// 0000-01-01 and 9999-12-31 23:59:59, in seconds since 1970.
const RANGE: std::ops::RangeInclusive<i64> = -62_167_219_200..=253_402_300_799;

/// A date and time. The day may exceed its month until the date is complete; [`to_unix`](Self::to_unix) then carries over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Civil {
    /// 0 to 9999.
    year: i64,
    /// 1 to 12.
    pub(super) month: u8,
    /// 1 to 31.
    pub(super) day: u8,
    /// 0 to 23.
    pub(super) hour: u8,
    /// 0 to 59.
    pub(super) minute: u8,
    /// 0 to 59.
    pub(super) second: u8,
}

/// The value is below 256 by construction.
fn small(value: i64) -> u8 {
    u8::try_from(value).unwrap_or_default()
}

impl Civil {
    /// Date and time of `seconds` since 1970; what lies outside the years 0 to 9999 becomes their first or last second.
    pub(super) fn from_unix(seconds: i64) -> Self {
        let seconds = seconds.clamp(*RANGE.start(), *RANGE.end());
        let (days, rest) = (
            seconds.div_euclid(DAY_SECONDS),
            seconds.rem_euclid(DAY_SECONDS),
        );
        // Counted from March, the leap day is the last of its year, and months repeat every five (153 days).
        let day = days + EPOCH_DAYS;
        let (era, day_of_era) = (day.div_euclid(ERA_DAYS), day.rem_euclid(ERA_DAYS));
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * day_of_year + 2) / 153;
        let month = if march_month < 10 {
            march_month + 3
        } else {
            march_month - 9
        };
        Self {
            year: era * 400 + year_of_era + i64::from(month <= 2),
            month: small(month),
            day: small(day_of_year - (153 * march_month + 2) / 5 + 1),
            hour: small(rest / 3600),
            minute: small(rest / 60 % 60),
            second: small(rest % 60),
        }
    }

    /// Seconds since 1970.
    pub(super) fn to_unix(self) -> i64 {
        let month = i64::from(self.month);
        let year = self.year - i64::from(month <= 2);
        let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let march_month = (month + 9) % 12;
        let day_of_year = (153 * march_month + 2) / 5 + i64::from(self.day) - 1;
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        (era * ERA_DAYS + day_of_era - EPOCH_DAYS) * DAY_SECONDS
            + i64::from(self.hour) * 3600
            + i64::from(self.minute) * 60
            + i64::from(self.second)
    }

    /// 1 (Sunday) to 7.
    pub(super) fn weekday(self) -> u8 {
        let days = self.to_unix().div_euclid(DAY_SECONDS);
        // 1970-01-01 was a Thursday.
        small((days + 4).rem_euclid(7) + 1)
    }

    pub(super) fn century(self) -> u8 {
        small(self.year / 100)
    }

    pub(super) fn year_of_century(self) -> u8 {
        small(self.year % 100)
    }

    pub(super) fn set_second(&mut self, value: u8) -> bool {
        store(&mut self.second, value, 0..=59)
    }

    pub(super) fn set_minute(&mut self, value: u8) -> bool {
        store(&mut self.minute, value, 0..=59)
    }

    pub(super) fn set_hour(&mut self, value: u8) -> bool {
        store(&mut self.hour, value, 0..=23)
    }

    pub(super) fn set_day(&mut self, value: u8) -> bool {
        store(&mut self.day, value, 1..=31)
    }

    pub(super) fn set_month(&mut self, value: u8) -> bool {
        store(&mut self.month, value, 1..=12)
    }

    pub(super) fn set_year_of_century(&mut self, value: u8) -> bool {
        let valid = value < 100;
        if valid {
            self.year = self.year / 100 * 100 + i64::from(value);
        }
        valid
    }

    pub(super) fn set_century(&mut self, value: u8) -> bool {
        let valid = value < 100;
        if valid {
            self.year = self.year % 100 + i64::from(value) * 100;
        }
        valid
    }
}

/// Stores `value` if it is in range, and says so.
fn store(field: &mut u8, value: u8, range: std::ops::RangeInclusive<u8>) -> bool {
    let valid = range.contains(&value);
    if valid {
        *field = value;
    }
    valid
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_dates() {
        for (seconds, date) in [
            (0, (1970, 1, 1)),
            (951_782_400, (2000, 2, 29)),
            (951_868_800, (2000, 3, 1)),
            (4_107_456_000, (2100, 2, 28)),
            (4_107_542_400, (2100, 3, 1)),
            (-1, (1969, 12, 31)),
            (*RANGE.start(), (0, 1, 1)),
            (*RANGE.end(), (9999, 12, 31)),
            (i64::MAX, (9999, 12, 31)),
            (i64::MIN, (0, 1, 1)),
        ] {
            let civil = Civil::from_unix(seconds);
            assert_eq!((civil.year, civil.month, civil.day), date, "{seconds}");
        }
        assert_eq!(Civil::from_unix(0).weekday(), 5, "a Thursday");
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let mut before = Civil::from_unix(*RANGE.start());
        let mut seconds = before.to_unix() + DAY_SECONDS;
        while RANGE.contains(&seconds) {
            let civil = Civil::from_unix(seconds);
            let next_day = civil.day == before.day + 1 && civil.month == before.month;
            let next_month = civil.day == 1 && civil.month == before.month + 1 && before.day >= 28;
            let next_year = (civil.month, civil.day, before.month, before.day) == (1, 1, 12, 31);
            assert!(next_day || next_month || next_year, "{before:?} {civil:?}");
            before = civil;
            seconds += DAY_SECONDS;
        }
    }

    proptest! {
        #[test]
        fn there_and_back(seconds in RANGE) {
            prop_assert_eq!(Civil::from_unix(seconds).to_unix(), seconds);
        }
    }
}
