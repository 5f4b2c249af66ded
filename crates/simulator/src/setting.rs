//! The published experiment's machines and virtual machines, and the ways in which our own tables vary it.
//!
//! `Source:` A. Beloglazov, R. Buyya, "Optimal online deterministic algorithms and adaptive heuristics for energy and
//! performance efficient dynamic consolidation of virtual machines in Cloud data centers", CCPE 24(13), 2012.

use placement::power::PowerCurve;

/// Physical machines.
pub const HOSTS: usize = 800;
/// Hosts of each of the two kinds.
pub const HOSTS_OF_A_KIND: f64 = 400.0;
/// Power of the first kind of host, HP ProLiant ML110 G4, from idle to full load. Units: watts.
const G4_WATTS: [f64; 11] = [86.0, 89.4, 92.6, 96.0, 99.5, 102.0, 106.0, 108.0, 112.0, 114.0, 117.0];
/// The same of the second, ML110 G5.
const G5_WATTS: [f64; 11] = [93.7, 97.0, 101.0, 105.0, 110.0, 116.0, 121.0, 125.0, 129.0, 133.0, 135.0];
/// Sizes of the four types of virtual machine: speed and memory. Units: MIPS, MB.
pub const TYPES: [(f64, f64); 4] = [(2500.0, 870.0), (2000.0, 1740.0), (1000.0, 1740.0), (500.0, 613.0)];
/// Memory moved in a second: half of a link of 1 Gbit/s. Units: MB per second.
pub const MOVE_MB_PER_SECOND: f64 = 1_000_000.0 / 16_000.0;

/// A kind of host.
#[derive(Clone, Debug)]
pub struct HostKind {
    /// Speed of one of its two cores. Units: MIPS.
    pub core_mips: f64,
    /// Speed of all. Units: MIPS.
    pub mips: f64,
    /// What it draws.
    pub power: PowerCurve,
    /// The same, as the reference's table.
    table: [f64; 11],
}

impl HostKind {
    /// The two kinds, that with the even indices first.
    pub fn both() -> [HostKind; 2] {
        let kind = |core_mips: f64, table: [f64; 11]| HostKind {
            core_mips,
            mips: 2.0 * core_mips,
            table,
            power: PowerCurve::new(table.to_vec()).unwrap_or_else(|_| unreachable!("the tables above are curves")),
        };
        [kind(1860.0, G4_WATTS), kind(2660.0, G5_WATTS)]
    }
}

impl HostKind {
    /// Power at a load from 0 to 1, in the reference's order of operations: on a straight piece of the curve all hosts are of
    /// equal merit to best fit, and the last bit decides. Units: watts.
    pub fn watts(&self, load: f64) -> f64 {
        let tenths = load * 10.0;
        if load % 0.1 == 0.0 {
            return self.table[index(tenths)];
        }
        let (below, above) = (tenths.floor(), tenths.ceil());
        let (from, to) = (self.table[index(below)], self.table[index(above)]);
        let slope = (to - from) / 10.0;
        from + slope * (load - below / 10.0) * 100.0
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a load is between 0 and 1")]
fn index(tenths: f64) -> usize {
    (tenths as usize).min(10)
}

/// What may vary.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Memory binds at all times; otherwise only while a virtual machine is first placed.
    pub memory_enforced: bool,
    /// Memory of a host. Units: MB.
    pub host_memory_mb: f64,
    /// A virtual machine whose demand reaches zero stays; otherwise it is gone for good.
    pub keep_zero_demand: bool,
    /// What waking and sleeping cost.
    pub wake: Wake,
    /// Share of a virtual machine's memory that a balloon may take; 0 means that there is none.
    pub balloon_share: f64,
}

/// What waking and sleeping cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wake {
    /// Time at full power before a host that slept does any work. Units: seconds.
    pub seconds: f64,
    /// Power of a sleeping host. Units: watts.
    pub sleep_watts: f64,
}

impl Wake {
    /// The realistic setting: a minute at full power, 5 W asleep.
    pub const REALISTIC: Wake = Wake { seconds: 60.0, sleep_watts: 5.0 };
}

impl Default for Setting {
    fn default() -> Self {
        Setting {
            memory_enforced: false,
            host_memory_mb: 4096.0,
            keep_zero_demand: false,
            wake: Wake::default(),
            balloon_share: 0.0,
        }
    }
}
