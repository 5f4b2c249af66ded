//! What tests with random faults share: a seeded sequence, and a journal that a guest keeps on a raw disk. Each number is acknowledged when
//! it is synced; whatever befalls the guest, all acknowledged numbers must be there afterwards.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// Pause between two entries.
const PAUSE: Duration = Duration::from_millis(20);
/// Size of an entry. Units: bytes.
const ENTRY_BYTES: usize = 512;
/// How many entries the disk is given; then the oldest are overwritten. Few enough to be read in a moment by a guest whose every
/// instruction is translated.
const ENTRIES: u64 = 4096;

/// A sequence that is the same for the same seed. Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (2014).
pub struct Random(u64);

impl Random {
    /// Seeded by this variable, or anew; it is printed, so that a failure can be repeated.
    pub fn seeded(variable: &str) -> Self {
        let given = std::env::var(variable).ok().and_then(|text| text.parse().ok());
        let seed = given.unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            u64::from(now.subsec_nanos()) ^ (u64::from(std::process::id()) << 32)
        });
        println!("{variable}={seed}");
        Self(seed)
    }

    /// A number less than this.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    /// One of these.
    pub fn choose<T: Copy>(&mut self, of: &[T]) -> T {
        let index = self.below(u64::try_from(of.len()).unwrap_or(1));
        of[usize::try_from(index).unwrap_or(0)]
    }
}

/// How many rounds a test of this kind goes.
pub fn rounds(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// What was written and acknowledged.
#[derive(Default)]
pub struct Journal {
    now: Mark,
    count: usize,
}

/// A state of a journal.
#[derive(Clone, Debug, Default)]
pub struct Mark {
    next: u64,
    /// The last number that was acknowledged, by its place on the disk.
    acknowledged: BTreeMap<u64, u64>,
}

/// A process that ends with its owner.
pub struct Held(pub Child);

/// Input and output of a session.
pub type Pipes = (ChildStdin, BufReader<ChildStdout>);

/// A line that puts the journal's device into `$d`, by its serial number.
fn device(serial: &str) -> String {
    format!(
        "d=$(for b in /sys/block/vd*; do if [ \"$(cat $b/serial)\" = {serial} ]; then echo /dev/${{b##*/}}; fi; done)"
    )
}

impl Journal {
    /// What a guest has to run for [`Self::write`].
    pub fn writer(serial: &str) -> String {
        format!(
            "{}; while read n; do printf '%s\\n' $n | dd of=$d bs={ENTRY_BYTES} seek=$((n % {ENTRIES})) conv=fsync,notrunc 2>/dev/null && echo $n; done",
            device(serial)
        )
    }

    /// What a guest has to run for [`Self::check`].
    pub fn reader(&self, serial: &str) -> String {
        format!(
            "{}; echo 3 > /proc/sys/vm/drop_caches; dd if=$d bs={ENTRY_BYTES} count={} 2>/dev/null | tr -d '\\000'",
            device(serial),
            ENTRIES.min(self.now.next + 1)
        )
    }

    /// Writes until the session ends; `heard` is set once an entry is acknowledged.
    pub fn write(&mut self, (mut stdin, mut stdout): Pipes, heard: &AtomicBool) -> Result<()> {
        loop {
            let number = self.now.next;
            self.now.next += 1;
            let mut line = String::new();
            if writeln!(stdin, "{number}").is_err() || stdout.read_line(&mut line).unwrap_or(0) == 0 {
                break;
            }
            // A line that was cut off acknowledges nothing.
            if line.ends_with('\n') {
                ensure!(line.trim() == number.to_string(), "{line:?} instead of {number}");
                self.now.acknowledged.insert(number % ENTRIES, number);
                self.count += 1;
                heard.store(true, Ordering::Relaxed);
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// As it is now; nobody writes.
    pub fn mark(&self) -> Mark {
        self.now.clone()
    }

    /// The disk goes back to what it was then.
    pub fn revert(&mut self, mark: &Mark) {
        self.now.clone_from(mark);
    }

    /// How many entries were ever acknowledged, also such as went when the disk went back.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Checks what the disk holds: all that was acknowledged, and nothing that was never sent.
    pub fn check(&self, found: &str) -> Result<()> {
        self.now.check(found)
    }
}

impl Mark {
    /// The same, of a copy that was made then or later.
    pub fn is_in(&self, found: &str) -> Result<()> {
        let found = numbers(found)?;
        // In its place there may be one that was sent later.
        let is_lost = |(place, number): &(&u64, &u64)| found.get(*place).is_none_or(|there| there < *number);
        let lost: Vec<&u64> = self.acknowledged.iter().filter(is_lost).map(|(_, number)| number).collect();
        ensure!(lost.is_empty(), "of {} acknowledged entries these are lost: {lost:?}", self.acknowledged.len());
        Ok(())
    }

    fn check(&self, found: &str) -> Result<()> {
        self.is_in(found)?;
        let strange = numbers(found)?.into_values().find(|number| *number >= self.next);
        ensure!(strange.is_none(), "entry {strange:?} was never sent");
        Ok(())
    }
}

impl Held {
    /// What is said to it and by it; once.
    pub fn pipes(&mut self) -> Result<Pipes> {
        let (stdin, stdout) = (self.0.stdin.take().context("no input")?, self.0.stdout.take().context("no output")?);
        Ok((stdin, BufReader::new(stdout)))
    }

    /// Ends it, if it has not ended.
    pub fn end(&mut self) {
        // One that was waited for is not signalled: its number may be another's.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.end();
    }
}

/// The entries that a disk holds, by their places.
fn numbers(text: &str) -> Result<BTreeMap<u64, u64>> {
    let number = |line: &str| line.trim().parse::<u64>().with_context(|| format!("{line:?} is no entry"));
    text.lines().map(|line| number(line).map(|number| (number % ENTRIES, number))).collect()
}

/// Starts a session.
pub fn spawn(mut command: Command) -> Result<Held> {
    let started = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    started.map(Held).context("cannot start a session")
}

/// The control: a journal that lacks an entry is found out.
#[test]
fn a_lost_entry_is_noticed() {
    let mark = Mark { next: 4, acknowledged: BTreeMap::from([(0, 0), (1, 1), (3, 3)]) };
    assert!(mark.check("0\n1\n3\n").is_ok());
    assert!(mark.check("0\n1\n2\n3\n").is_ok(), "sent, and not acknowledged");
    assert!(mark.check("0\n1\n").is_err());
    assert!(mark.check("0\n1\n3\n4\n").is_err(), "never sent");
    assert!(mark.check("0\nx\n").is_err());
}

/// The control: so is one that was to overwrite another.
#[test]
fn a_lost_entry_is_noticed_when_the_disk_is_full() {
    let mark = Mark { next: ENTRIES + 2, acknowledged: BTreeMap::from([(0, ENTRIES), (1, 1)]) };
    let found = |first: u64, second: u64| mark.check(&format!("{first}\n{second}\n"));
    assert!(found(ENTRIES, 1).is_ok());
    assert!(found(ENTRIES, ENTRIES + 1).is_ok(), "sent, and not acknowledged");
    assert!(found(0, 1).is_err(), "the old one is there again");
    assert!(found(ENTRIES, ENTRIES + 1 + ENTRIES).is_err(), "never sent");
    assert!(mark.check(&format!("{ENTRIES}\n")).is_err());
}
