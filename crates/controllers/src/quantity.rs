//! Kubernetes quantities ("250m", "1.5Gi") as integers. `Source:` Kubernetes API reference, Quantity.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// The quantity in thousandths of its unit, rounded up; `None` when it is malformed, negative or out of range.
pub fn millis(quantity: &Quantity) -> Option<u64> {
    let text = quantity.0.trim();
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '+')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let (multiplier, divisor) = scale(suffix)?;
    let (whole, fraction) =
        number.trim_start_matches('+').split_once('.').unwrap_or((number.trim_start_matches('+'), ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.len() > 18 {
        return None;
    }
    let mut digits: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut denominator: u128 = divisor;
    for digit in fraction.chars() {
        digits = digits.checked_mul(10)?.checked_add(u128::from(digit.to_digit(10)?))?;
        denominator = denominator.checked_mul(10)?;
    }
    let thousandths = digits.checked_mul(multiplier)?.checked_mul(1000)?.div_ceil(denominator);
    u64::try_from(thousandths).ok()
}

/// The quantity in whole units, rounded up.
pub fn units(quantity: &Quantity) -> Option<u64> {
    millis(quantity).map(|thousandths| thousandths.div_ceil(1000))
}

fn scale(suffix: &str) -> Option<(u128, u128)> {
    Some(match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "k" => (1000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10u128.checked_pow(exponent.unsigned_abs().min(30))?;
            if exponent < 0 { (1, power) } else { (power, 1) }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Option<u64>) {
        assert_eq!(millis(&Quantity(text.into())), expected, "{text}");
    }

    #[test]
    fn quantities_read_as_kubernetes_reads_them() {
        check("250m", Some(250));
        check("1", Some(1000));
        check("1.5", Some(1500));
        check("0.1", Some(100));
        check(".5", Some(500));
        check("1Ki", Some(1_024_000));
        check("2e3", Some(2_000_000));
        check("100n", Some(1));
        check("1Gi", Some((1u64 << 30) * 1000));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "-1", "abc", "1Zi", "1.2.3", "0.1.m", "9999999999999999E", "NaN", "1e99"] {
            check(text, None);
        }
    }
}
