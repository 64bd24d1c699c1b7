//! Durations and sizes as people write them.

use std::time::Duration;

/// A duration: `200ms`, `1.5s`, `2m`, `1h30m`; a bare number is seconds.
///
/// # Errors
/// What would have been right.
pub fn duration(text: &str) -> Result<Duration, String> {
    let mut rest = text.trim();
    let mut sum = Duration::ZERO;
    let mut is_first = true;
    while is_first || !rest.is_empty() {
        let (number, unit, following) = part(rest);
        let seconds = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "" if is_first && following.is_empty() => 1.0,
            "m" | "min" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            _ => return Err("write a number with a unit: ms, s, m, h or d, as in 200ms, 1.5s or 1h30m".to_string()),
        };
        let value: f64 =
            number.parse().map_err(|_| "write a number with a unit, as in 200ms, 1.5s or 1h30m".to_string())?;
        let time = Duration::try_from_secs_f64(value * seconds).ok().and_then(|time| sum.checked_add(time));
        sum = time.ok_or_else(|| "that is no time that can be waited for".to_string())?;
        (rest, is_first) = (following, false);
    }
    Ok(sum)
}

/// A time in few digits, for people: tenths of a second below ten, and from two of the next unit on in that: `9.5 s`, `95 s`, `16 min`, `47 h`, `3 d`.
pub fn rounded(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        ..10.0 => format!("{seconds:.1} s"),
        ..120.0 => format!("{seconds:.0} s"),
        ..7200.0 => format!("{:.0} min", seconds / 60.0),
        ..172_800.0 => format!("{:.0} h", seconds / 3600.0),
        _ => format!("{:.0} d", seconds / 86_400.0),
    }
}

/// A size in bytes: `4096`, `64K`, `1M`, `16MiB`. Units are powers of 1,024.
///
/// # Errors
/// What would have been right.
pub fn size(text: &str) -> Result<usize, String> {
    let (number, unit) = split(text);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        _ => return Err("write a number with K, M or G, as in 64K or 16M".to_string()),
    };
    let value: usize = number.parse().map_err(|_| "write a whole number, as in 4096, 64K or 16M".to_string())?;
    value.checked_mul(1 << shift).ok_or_else(|| "that is more than this machine can address".to_string())
}

/// The first number, its unit, and what follows them.
fn part(text: &str) -> (&str, &str, &str) {
    let (number, rest) = split(text);
    let end = rest.find(|c: char| !c.is_alphabetic()).unwrap_or(rest.len());
    (number, &rest[..end], rest[end..].trim_start())
}

fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    (&text[..end], text[end..].trim_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read() {
        let ms = |text| duration(text).map(|duration| duration.as_millis());
        assert_eq!(ms("200ms"), Ok(200));
        assert_eq!(ms("1.5s"), Ok(1500));
        assert_eq!(ms("2 m"), Ok(120_000));
        assert_eq!(ms("0"), Ok(0));
        assert_eq!(ms("3"), Ok(3000));
        assert_eq!(ms("1h30m"), Ok(5_400_000));
        assert_eq!(ms("1d 2h 3m 4.5s 6ms"), Ok(93_784_506));
        let bad =
            ["", "s", "-1s", "1y", "1e400", "1.2.3s", "99999999999999999999d", "1h30", "1h 30", "h1", "1h-30m", "1,5s"];
        for bad in bad {
            assert!(duration(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn times_are_rounded_for_people() {
        let of = |millis| rounded(Duration::from_millis(millis));
        assert_eq!([of(0), of(9_940), of(95_400), of(119_000)], ["0.0 s", "9.9 s", "95 s", "119 s"]);
        assert_eq!([of(120_000), of(7_199_000), of(7_200_000), of(172_800_000)], ["2 min", "120 min", "2 h", "2 d"]);
    }

    #[test]
    fn sizes_are_read() {
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("64K"), Ok(65_536));
        assert_eq!(size("16MiB"), Ok(16 << 20));
        for bad in ["", "K", "1.5M", "-1", "1T", "99999999999G"] {
            assert!(size(bad).is_err(), "{bad:?}");
        }
    }
}
