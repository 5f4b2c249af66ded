//! Quantities (`100m`, `1Gi`, `2e3`) as integers. `Source:` apimachinery's `resource.Quantity`.

/// Nano-units of one unit.
const NANO: i128 = 1_000_000_000;

/// The quantity in nano-units, rounded up; `None` when it is none.
pub fn nano(text: &str) -> Option<i128> {
    let digits = text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let (scale, shift) = suffix_of(suffix)?;
    let (sign, number) = match number.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, number.strip_prefix('+').unwrap_or(number)),
    };
    if number.contains(['+', '-']) {
        return None;
    }
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && part.is_empty() || part.len() > 18 {
        return None;
    }
    let digits: i128 = format!("{whole}{part}").parse().ok()?;
    let mut numerator = digits.checked_mul(NANO)?.checked_mul(scale)?;
    let mut exponent = shift - i32::try_from(part.len()).ok()?;
    while exponent > 0 {
        numerator = numerator.checked_mul(10)?;
        exponent -= 1;
    }
    while exponent < 0 {
        numerator = numerator.checked_add(9)? / 10;
        exponent += 1;
    }
    Some(sign * numerator)
}

fn suffix_of(suffix: &str) -> Option<(i128, i32)> {
    Some(match suffix {
        "" => (1, 0),
        "n" => (1, -9),
        "u" => (1, -6),
        "m" => (1, -3),
        "k" => (1, 3),
        "M" => (1, 6),
        "G" => (1, 9),
        "T" => (1, 12),
        "P" => (1, 15),
        "E" => (1, 18),
        "Ki" => (1 << 10, 0),
        "Mi" => (1 << 20, 0),
        "Gi" => (1 << 30, 0),
        "Ti" => (1 << 40, 0),
        "Pi" => (1 << 50, 0),
        "Ei" => (1 << 60, 0),
        other => {
            let exponent = other.strip_prefix(['e', 'E'])?.parse::<i32>().ok()?;
            (1, Some(exponent).filter(|exponent| (-18..=18).contains(exponent))?)
        }
    })
}

/// The quantity in thousandths, rounded away from zero; `None` when it is none or out of range.
pub fn milli(text: &str) -> Option<i64> {
    let nano = nano(text.trim())?;
    i64::try_from(nano.signum() * nano.abs().checked_add(NANO / 1000 - 1)?.div_euclid(NANO / 1000)).ok()
}

/// The quantity in whole units, rounded up; `None` when it is none or out of range.
pub fn whole(text: &str) -> Option<i64> {
    let nano = nano(text.trim())?;
    i64::try_from(nano.checked_add(NANO - 1)?.div_euclid(NANO)).ok()
}

/// The shortest plain text.
pub fn format(nano: i128) -> String {
    if nano % NANO == 0 { (nano / NANO).to_string() } else { format!("{}m", nano.div_euclid(NANO / 1000)) }
}

/// A number of bytes as people read it (`64Mi`), exactly.
pub fn bytes(number: u64) -> String {
    let units = [("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)];
    let fits = units.into_iter().find(|(_, shift)| number > 0 && number.trailing_zeros() >= *shift);
    fits.map_or_else(|| number.to_string(), |(unit, shift)| format!("{}{unit}", number >> shift))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_exactly_and_nonsense_is_not() {
        for (text, milli) in [
            ("1", 1000),
            ("100m", 100),
            ("0.1", 100),
            ("1Ki", 1_024_000),
            ("2e3", 2_000_000),
            ("1.5k", 1_500_000),
            ("-1", -1000),
        ] {
            assert_eq!(nano(text), Some(milli * NANO / 1000), "{text}");
        }
        for text in ["", "x", "1x", "1e400", "NaN", "Inf", ".", "1..2", "--1", "1e", &"9".repeat(60)] {
            assert_eq!(nano(text), None, "{text}");
        }
        assert_eq!(nano("1500m").map(format).as_deref(), Some("1500m"));
        assert_eq!([0, 1, 1536, 64 << 20, 3 << 30].map(bytes), ["0", "1", "1536", "64Mi", "3Gi"]);
    }
}
