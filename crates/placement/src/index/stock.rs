//! What is left of a resource on a machine, laid out so that its share of the whole is found without a division.

/// Highest share.
pub(crate) const WHOLE: u64 = 100;
/// Totals below two to this power take the short way.
const SHORT_BITS: u32 = 57;

/// One resource of one machine, as scoring sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stock {
    /// What is left.
    left: u64,
    /// All there is; at least 1.
    total: u64,
    /// [`WHOLE`] / total, times two to the power of [`SHORT_BITS`], rounded down; 0 for totals that are too large for it.
    inverse: u64,
}

impl Stock {
    pub fn new(total: u64, used: u64) -> Stock {
        let (left, total) = (total.saturating_sub(used), total.max(1));
        let inverse = if total >> SHORT_BITS == 0 { (WHOLE << SHORT_BITS) / total } else { 0 };
        Stock { left, total, inverse }
    }

    pub fn set_used(&mut self, total: u64, used: u64) {
        if self.total == total {
            self.left = total.saturating_sub(used);
        } else {
            *self = Stock::new(total, used);
        }
    }

    /// The share of the whole that stays when so much is taken, 0 to [`WHOLE`], rounded down.
    #[inline]
    pub fn share_without(&self, asked: u64) -> u32 {
        let left = self.left.saturating_sub(asked);
        if self.inverse == 0 {
            return long_share(left, self.total);
        }
        // The product falls short of the true quotient by less than left / 2^57 < 1, so that it is right or one too low.
        let product = (u128::from(left) * u128::from(self.inverse)) >> SHORT_BITS;
        let low = u64::try_from(product).unwrap_or(WHOLE);
        let rest = left * WHOLE - low * self.total;
        u32::try_from(low + u64::from(rest >= self.total)).unwrap_or(0)
    }
}

#[cold]
fn long_share(left: u64, total: u64) -> u32 {
    u32::try_from(u128::from(left) * u128::from(WHOLE) / u128::from(total)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn amounts() -> impl Strategy<Value = u64> {
        (any::<u64>(), 0u32..64, 0u64..3).prop_map(|(number, shift, add)| (number >> shift).saturating_add(add))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn the_share_is_that_of_the_division(total in amounts(), used in amounts(), asked in amounts(), hundredth in 0u64..101) {
            let exact = |total: u64, used: u64, asked: u64| {
                let left = total.saturating_sub(used).saturating_sub(asked);
                u32::try_from(u128::from(left) * 100 / u128::from(total.max(1))).unwrap_or(0)
            };
            prop_assert_eq!(Stock::new(total, used).share_without(asked), exact(total, used, asked));
            // Where the quotient is a whole number, or just not.
            let edge = u64::try_from(u128::from(total) * u128::from(hundredth) / 100).unwrap_or(0);
            for used in [edge.saturating_sub(1), edge, edge.saturating_add(1)] {
                prop_assert_eq!(Stock::new(total, used).share_without(asked % 2), exact(total, used, asked % 2));
            }
        }
    }
}
