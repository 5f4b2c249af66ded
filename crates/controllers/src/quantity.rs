//! Quantities of objects as the unsigned integers that placement takes.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// The quantity in thousandths of its unit, rounded up; `None` when it is malformed, negative or out of range.
pub fn millis(quantity: &Quantity) -> Option<u64> {
    api::quantity::milli(&quantity.0).and_then(|value| u64::try_from(value).ok())
}

/// The quantity in whole units, rounded up; `None` as for [`millis`].
pub fn units(quantity: &Quantity) -> Option<u64> {
    api::quantity::whole(&quantity.0).and_then(|value| u64::try_from(value).ok())
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
