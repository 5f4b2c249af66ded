//! `nuee simulate`: replays a trace under a policy.

use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use simulator::metrics::Outcome;
use simulator::report::{Course, rows};
use simulator::run::{Decision, Optimiser, always_on, run as run_day};
use simulator::setting::{Setting, Wake};
use simulator::trace::{SAMPLES, Trace};
use simulator::world::World;

use super::Format;

/// Most that a trace may unpack to: a day of a million machines. Units: bytes.
const TRACE_BYTES_MAX: u64 = 1 << 30;

/// How a gzipped file begins.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Flags of `nuee simulate`.
#[derive(clap::Args)]
pub struct Arguments {
    /// The experiment: its machines, types of virtual machine and rules
    #[arg(long, value_enum, default_value_t = Experiment::Planetlab)]
    experiment: Experiment,
    /// Trace to replay: CSV, a name and 288 percentages in each line; gzipped or not
    #[arg(long, value_name = "FILE")]
    trace: PathBuf,
    /// npa, dvfs, mfped, nuee, or a detection (thr, iqr, mad, lr, lrr, lr-weighted) with a selection (mmt, mc, rs, mu), as lr-mmt
    #[arg(long, default_value = "nuee")]
    policy: String,
    /// Whether memory binds after the first placement
    #[arg(long, value_enum, default_value_t = Memory::Ignored)]
    memory: Memory,
    /// What becomes of a virtual machine whose demand reaches zero
    #[arg(long, value_enum, default_value_t = ZeroDemand::Vanish)]
    zero_demand: ZeroDemand,
    /// Memory of a host
    #[arg(long, value_name = "MB", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(2048..=4_194_304))]
    host_memory_mb: u32,
    /// What waking costs: nothing, or a minute at full power and 5 W asleep
    #[arg(long, value_enum, default_value_t = WakeCost::Free)]
    wake: WakeCost,
    /// Share of each machine's memory that a balloon may take, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=90))]
    balloon: u32,
    /// Write a report with charts to this HTML file
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    #[command(flatten)]
    output: super::Output,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Experiment {
    Planetlab,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum Memory {
    Ignored,
    Enforced,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum ZeroDemand {
    Vanish,
    Keep,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum WakeCost {
    Free,
    Realistic,
}

/// Measures how long each decision takes, as `simulator` itself has no clock, and counts whom the first placement left out.
struct Timed {
    inner: Box<dyn Optimiser>,
    longest: Duration,
    unplaced: usize,
}

impl Optimiser for Timed {
    fn start(&mut self, world: &World<'_>) -> Vec<Option<u32>> {
        let places = self.inner.start(world);
        self.unplaced = places.iter().filter(|place| place.is_none()).count();
        places
    }

    fn optimise(&mut self, world: &World<'_>) -> Decision {
        let begin = Instant::now();
        let decision = self.inner.optimise(world);
        self.longest = self.longest.max(begin.elapsed());
        decision
    }
}

/// Runs it and prints the result.
pub fn run(arguments: &Arguments) -> Result<()> {
    let Experiment::Planetlab = arguments.experiment;
    // What can fail fails before the day is replayed, not after.
    let trace = read(&arguments.trace)?;
    let mut report = arguments.report.as_deref().map(create).transpose()?;
    let setting = Setting {
        memory_enforced: arguments.memory == Memory::Enforced,
        host_memory_mb: f64::from(arguments.host_memory_mb),
        keep_zero_demand: arguments.zero_demand == ZeroDemand::Keep,
        wake: if arguments.wake == WakeCost::Realistic { Wake::REALISTIC } else { Wake::default() },
        balloon_share: f64::from(arguments.balloon) / 100.0,
    };
    let mut course = Course::default();
    let (outcome, longest, unplaced) = if arguments.policy == "npa" {
        (always_on(&trace, &setting), Duration::ZERO, 0)
    } else {
        let Some(inner) = simulator::policy::by_name(&arguments.policy) else {
            bail!("there is no policy `{}`; known are {}", arguments.policy, simulator::policy::NAMES.join(", "));
        };
        let mut timed = Timed { inner, longest: Duration::ZERO, unplaced: 0 };
        let bar = progress();
        let outcome = run_day(&trace, &setting, &mut timed, |glance| {
            course.note(&glance);
            bar.inc(1);
        });
        bar.finish_and_clear();
        (outcome, timed.longest, timed.unplaced)
    };
    if unplaced > 0 {
        eprintln!(
            "nuee: warning: {unplaced} of {} virtual machines find no host with memory for them and are left out",
            trace.len()
        );
    }
    if let (Some(file), Some(path)) = (&mut report, &arguments.report) {
        let title = format!("{} on {}", arguments.policy, arguments.trace.display());
        file.write_all(course.html(&title, &outcome).as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    print(arguments, &outcome, longest)
}

fn print(arguments: &Arguments, outcome: &Outcome, longest: Duration) -> Result<()> {
    match arguments.output.output {
        Format::Json => {
            let value = json!({
                "policy": arguments.policy,
                "energy_kwh": outcome.energy_kwh,
                "migrations": outcome.migrations,
                "slatah": outcome.slatah,
                "pdm": outcome.pdm,
                "slav": outcome.slav(),
                "esv": outcome.esv(),
                "mean_active_hosts": outcome.mean_active_hosts,
                "unserved_share": outcome.unserved_share,
                "bound_kwh": outcome.bound_kwh,
                "wakes": outcome.wakes,
                "plan_seconds_max": longest.as_secs_f64(),
            });
            println!("{}", serde_json::to_string_pretty(&value)?);
        }
        Format::Text => {
            println!("{} on {}", arguments.policy, arguments.trace.display());
            for (name, value) in rows(outcome) {
                println!("  {name:24} {value:>14}");
            }
            println!("  {:24} {:>11.1} ms", "longest decision", longest.as_secs_f64() * 1000.0);
        }
    }
    Ok(())
}

fn progress() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(SAMPLES as u64 - 1);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} steps, {eta} left") {
        bar.set_style(style);
    }
    bar
}

fn create(path: &Path) -> Result<File> {
    File::create(path).with_context(|| format!("cannot write {}", path.display()))
}

fn read(path: &Path) -> Result<Trace> {
    let shown = path.display();
    let file = File::open(path).with_context(|| format!("cannot open the trace {shown}"))?;
    let mut packed = BufReader::new(file);
    let begin = packed.fill_buf().with_context(|| format!("cannot read the trace {shown}"))?;
    // A gzipped file may be several that were put one after the other.
    let unpacked: Box<dyn Read> = if begin.starts_with(&GZIP_MAGIC) {
        Box::new(flate2::bufread::MultiGzDecoder::new(packed))
    } else {
        Box::new(packed)
    };
    let text = super::read_bounded(unpacked, TRACE_BYTES_MAX, &format!("the trace {shown}"))?;
    let text = String::from_utf8(text).with_context(|| format!("cannot read the trace {shown}"))?;
    Trace::parse(&text).with_context(|| format!("{shown} is no trace"))
}
