//! Parsers of common values. Each takes a trimmed text and says what it expected.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use super::Expected;

/// A duration above zero with a unit, such as `5s`, `500ms` or `1m 30s`.
///
/// # Errors
/// A bare number, zero, or more than a year (so that adding it to a clock can't overflow).
pub fn duration(text: &str) -> Result<Duration, Expected> {
    const YEAR: Duration = Duration::from_secs(366 * 24 * 3600);
    match humantime::parse_duration(text) {
        Ok(duration) if !duration.is_zero() && duration <= YEAR => Ok(duration),
        _ if is_digits(text) && text.parse() != Ok(0u64) => {
            Err(format!("a duration with a unit, such as {text}s or {text}ms"))
        }
        _ => Err("a duration above zero with a unit, such as 5s, 500ms or 1m30s".into()),
    }
}

/// Like [`duration`], but zero (`0s`) is allowed too.
///
/// # Errors
/// As [`duration`].
pub fn duration_or_zero(text: &str) -> Result<Duration, Expected> {
    if text == "0s" || text == "0" {
        return Ok(Duration::ZERO);
    }
    duration(text).map_err(|expected| format!("{expected}, or 0s for none"))
}

/// A number of bytes above zero with a unit, in upper or lower case. As with the GNU tools, K, M and G (or KiB, MiB and GiB) are
/// powers of 1024, KB, MB and GB powers of 1000, and B is one byte.
///
/// # Errors
/// A bare number, zero, or another unit.
pub fn size(text: &str) -> Result<u64, Expected> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let scale = match unit.trim().to_ascii_lowercase().as_str() {
        "b" => Some(1),
        "k" | "kib" => Some(1 << 10),
        "m" | "mib" => Some(1 << 20),
        "g" | "gib" => Some(1 << 30),
        "kb" => Some(1_000),
        "mb" => Some(1_000_000),
        "gb" => Some(1_000_000_000),
        _ => None,
    };
    match (number.parse::<u64>(), scale) {
        (Ok(number), Some(scale)) if number > 0 => number.checked_mul(scale),
        _ => None,
    }
    .ok_or_else(|| match number.parse::<u64>() {
        Ok(1..) if unit.is_empty() => format!("a size with a unit, such as {number}B, {number}KiB or {number}MiB"),
        _ => "a size above zero with a unit (B, KiB, MiB or GiB), such as 64KiB".into(),
    })
}

/// A whole number within `range`.
pub fn whole<T>(range: RangeInclusive<T>) -> impl Fn(&str) -> Result<T, Expected>
where
    T: FromStr + PartialOrd + fmt::Display,
{
    move |text| match text.parse() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => Err(format!("a whole number from {} to {}", range.start(), range.end())),
    }
}

/// A number above zero and at most `max`, with or without a fraction.
pub fn positive(max: f64) -> impl Fn(&str) -> Result<f64, Expected> {
    move |text| match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number <= max => Ok(number),
        _ => Err(format!("a number above 0 and at most {max}")),
    }
}

/// `true`, `yes` or `on`; `false`, `no` or `off`; in upper or lower case.
///
/// # Errors
/// Anything else.
pub fn truth(text: &str) -> Result<bool, Expected> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" => Ok(true),
        "false" | "no" | "off" => Ok(false),
        _ => Err("true or false".into()),
    }
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_required_and_nonsense_is_refused() {
        assert_eq!(duration("1m 30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration_or_zero("0s"), Ok(Duration::ZERO));
        for bad in ["", "5", "-1s", "0s", "s", "5 fortnights", "9999y"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert_eq!(
            duration("30"),
            Err("a duration with a unit, such as 30s or 30ms".into())
        );
        for bad in ["0", "-1", "NaN", "inf", "x", ""] {
            assert!(positive(10.0)(bad).is_err(), "{bad}");
        }
        assert_eq!(truth("Yes"), Ok(true));
        assert_eq!(truth("off"), Ok(false));
        assert!(truth("perhaps").is_err());
    }

    #[test]
    fn sizes_are_taken_as_the_gnu_tools_take_them() {
        for (text, bytes) in [
            ("1B", 1),
            ("64KiB", 65_536),
            ("32K", 32_768),
            ("1m", 1 << 20),
            ("1 GiB", 1 << 30),
            ("2g", 2 << 30),
            ("10MB", 10_000_000),
            ("10kb", 10_000),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "64", "0B", "KiB", "-1B", "1.5MB", "1 T", "99999999999GiB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
        assert_eq!(
            size("10"),
            Err("a size with a unit, such as 10B, 10KiB or 10MiB".into())
        );
    }
}
