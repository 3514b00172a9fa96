//! Durations, sizes and rates as people write them: "20s", "8MiB", "30/m".

use std::fmt;
use std::time::Duration;

/// At most `count` in `per`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub count: u32,
    pub per: Duration,
}

impl Rate {
    /// The time between two events that are evenly spread.
    pub fn interval(self) -> Duration {
        self.per / self.count.max(1)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = DURATIONS.iter().find(|(_, ms)| u128::from(*ms) == self.per.as_millis());
        write!(f, "{}/{}", self.count, unit.map_or("?", |(unit, _)| unit))
    }
}

/// Smallest first, in milliseconds.
const DURATIONS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

const SIZES: [(&str, u64); 7] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
];

/// Reads "500ms", "20s", "15m", "2h", "3d".
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong =
        || format!("\"{text}\" is not a duration such as \"500ms\", \"20s\", \"15m\", \"2h\" or \"3d\"");
    let (number, unit) = split(text).ok_or_else(wrong)?;
    let (_, ms) = DURATIONS.iter().find(|(known, _)| *known == unit).ok_or_else(wrong)?;
    number.checked_mul(*ms).map(Duration::from_millis).ok_or_else(wrong)
}

/// Reads "8MiB", "64KiB", "512B", "1GB".
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("\"{text}\" is not a size such as \"16KiB\", \"8MiB\" or a number of bytes");
    let (number, unit) = split(text).ok_or_else(wrong)?;
    let (_, bytes) = SIZES.iter().find(|(known, _)| known.eq_ignore_ascii_case(unit)).ok_or_else(wrong)?;
    number.checked_mul(*bytes).ok_or_else(wrong)
}

/// Reads "2/s", "30/m", "100/h".
pub fn parse_rate(text: &str) -> Result<Rate, String> {
    let wrong = || format!("\"{text}\" is not a rate such as \"2/s\", \"30/m\" or \"100/h\"");
    let (count, unit) = text.split_once('/').ok_or_else(wrong)?;
    let count = count.trim().parse().ok().filter(|count| (1..=10_000).contains(count)).ok_or_else(wrong)?;
    let known =
        DURATIONS.iter().find(|(known, _)| *known == unit.trim() && *known != "ms").ok_or_else(wrong)?;
    Ok(Rate { count, per: Duration::from_millis(known.1) })
}

/// Writes `duration` in the largest unit that holds it whole.
pub fn format_duration(duration: Duration) -> String {
    let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let (unit, size) = DURATIONS
        .iter()
        .rev()
        .find(|(_, size)| ms >= *size && ms.is_multiple_of(*size))
        .unwrap_or(&DURATIONS[0]);
    format!("{}{unit}", ms / size)
}

/// Writes `bytes` in the largest binary unit that holds them whole.
pub fn format_size(bytes: u64) -> String {
    let (unit, size) = SIZES[..4]
        .iter()
        .rev()
        .find(|(_, size)| bytes >= *size && bytes.is_multiple_of(*size))
        .unwrap_or(&SIZES[0]);
    format!("{}{unit}", bytes / size)
}

fn split(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    Some((text[..end].parse().ok()?, text[end..].trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_sizes_and_rates_are_read_as_people_write_them() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("15m"), Ok(Duration::from_secs(900)));
        assert_eq!(parse_duration("3 d"), Ok(Duration::from_secs(3 * 86_400)));
        assert_eq!(parse_size("8MiB"), Ok(8 << 20));
        assert_eq!(parse_size("16 kib"), Ok(16 << 10));
        assert_eq!(parse_rate("30/m"), Ok(Rate { count: 30, per: Duration::from_secs(60) }));
        assert_eq!(parse_rate("30/m").map(Rate::interval), Ok(Duration::from_secs(2)));
        assert_eq!(parse_rate("2/s").unwrap().to_string(), "2/s");
    }

    #[test]
    fn what_is_none_of_them_is_refused() {
        for text in [
            "",
            "s",
            "20",
            "-1s",
            "1.5s",
            "20 parsecs",
            "99999999999999999999s",
            "18446744073709551615d",
            "١s",
        ] {
            assert!(parse_duration(text).is_err(), "{text:?}");
            assert!(parse_size(text).is_err(), "{text:?}");
            assert!(parse_rate(text).is_err(), "{text:?}");
        }
        assert!(parse_rate("0/s").is_err());
        assert!(parse_rate("1/ms").is_err());
    }

    #[test]
    fn limits_are_written_as_people_read_them() {
        assert_eq!(format_duration(Duration::from_secs(86_400)), "1d");
        assert_eq!(format_duration(Duration::from_secs(90)), "90s");
        assert_eq!(format_duration(Duration::ZERO), "0ms");
        assert_eq!(format_size(3 << 20), "3MiB");
        assert_eq!(format_size(1000), "1000B");
    }
}
