//! Policies by the names that scripts know.

use crate::baseline::{Baseline, Detection, Selection};
use crate::nuee::Nuee;
use crate::run::Optimiser;

/// Seed of the random selection: any; fixed, so that a run can be repeated.
const SEED: u64 = 1;
/// The literature's multiplier of a predicted use.
const REGRESSION_SAFETY: f64 = 1.2;

/// Every name that [`by_name`] knows, but for the selections other than `mmt`.
pub const NAMES: [&str; 11] =
    ["npa", "dvfs", "thr-mmt", "iqr-mmt", "mad-mmt", "lr-mmt", "lrr-mmt", "lr-weighted-mmt", "mfped", "nuee", "thr-mc"];

/// A policy with its published parameters. `npa` is not among them: nothing is decided there, see [`crate::run::always_on`].
/// Detections are `thr`, `iqr`, `mad`, `lr`, `lrr` and `lr-weighted`; selections `mmt`, `mc`, `rs` and `mu`.
pub fn by_name(name: &str) -> Option<Box<dyn Optimiser>> {
    match name {
        "dvfs" => return Some(Box::new(Baseline::dvfs())),
        "mfped" => return Some(Box::new(Baseline::mfped())),
        "nuee" => return Some(Box::new(Nuee::default())),
        _ => {}
    }
    let (detection, selection) = name.rsplit_once('-')?;
    let detection = match detection {
        "thr" => Detection::Threshold(0.8),
        "iqr" => Detection::InterquartileRange(1.5),
        "mad" => Detection::MedianDeviation(2.5),
        // The reference's weights never take effect, so that its robust form is the same.
        "lr" | "lrr" => Detection::LocalRegression { safety: REGRESSION_SAFETY, weighted: false },
        "lr-weighted" => Detection::LocalRegression { safety: REGRESSION_SAFETY, weighted: true },
        _ => return None,
    };
    let selection = match selection {
        "mmt" => Selection::MinimumMigrationTime,
        "mc" => Selection::MaximumCorrelation,
        "rs" => Selection::Random(SEED),
        "mu" => Selection::MinimumUse,
        _ => return None,
    };
    Some(Box::new(Baseline::of(detection, selection)))
}
