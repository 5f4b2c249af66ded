//! The policies of the literature, as the reference implements them: detect overload, select what leaves, place it by
//! power-aware best fit, then empty under-used hosts.
//!
//! `Source:` Beloglazov and Buyya (see `setting`); CloudSim 3.0.3; M. Moges, S. L. Abebe, "Energy-aware VM placement algorithms
//! for the OpenStack Neat consolidation framework", J. Cloud Computing 8:2, 2019 (MFPED).

mod detect;
mod optimise;
mod packer;
mod select;
mod statistics;

pub use detect::Detection;
pub use packer::Placement;
pub use select::Selection;

use crate::run::{Decision, Optimiser};
use crate::world::World;
use packer::Packer;

/// A policy of the literature.
#[derive(Clone, Debug)]
pub struct Baseline {
    /// When a host is overloaded; `None` never moves anything.
    pub detection: Option<Detection>,
    /// What leaves it.
    pub selection: Selection,
    /// Where it goes.
    pub placement: Placement,
}

impl Baseline {
    /// Power follows use; nothing moves.
    pub fn dvfs() -> Baseline {
        Baseline { detection: None, selection: Selection::MinimumMigrationTime, placement: Placement::FirstFit }
    }

    /// Detection with selection, placed by power-aware best fit.
    pub fn of(detection: Detection, selection: Selection) -> Baseline {
        Baseline { detection: Some(detection), selection, placement: Placement::LeastPower }
    }

    /// Medium-fit power-efficient decreasing.
    pub fn mfped() -> Baseline {
        Baseline {
            detection: Some(Detection::LocalRegression { safety: 1.2, weighted: false }),
            selection: Selection::MinimumMigrationTime,
            placement: Placement::MediumFit,
        }
    }
}

impl Optimiser for Baseline {
    fn start(&mut self, world: &World<'_>) -> Vec<Option<u32>> {
        let mut packer = Packer::at_start(world, self.detection, self.placement);
        (0..).take(world.vms.len()).map(|vm| packer.place(vm)).collect()
    }

    fn optimise(&mut self, world: &World<'_>) -> Decision {
        let Some(detection) = self.detection else { return Decision::default() };
        let mut packer = Packer::new(world, detection, self.placement);
        Decision { balloons: Vec::new(), moves: optimise::optimise(&mut packer, &mut self.selection) }
    }
}
