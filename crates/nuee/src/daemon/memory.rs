//! Memory that an idle daemon does without: its start runs through most of the program once, and the kernel then keeps all of
//! that text mapped. It is let go when the daemon is quiet; what is needed is mapped again at the next
//! touch, out of the page cache.

use std::ops::Range;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

/// Times after the start at which what it needed is let go: when it can be used, and when what it does behind that is done.
const START: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(15)];
/// How often the daemon looks whether it is quiet.
const PERIOD: Duration = Duration::from_secs(60);
/// Processor time in a period below which it is. Units: milliseconds.
const QUIET_MS: i64 = 1_200;

/// Lets the text go after the start, and whenever the daemon has been quiet for a time, in which it touches some of it all the same.
/// Never ends.
pub async fn keep_small() {
    for wait in START {
        tokio::time::sleep(wait).await;
        let_go().await;
    }
    let mut before = used_ms();
    loop {
        tokio::time::sleep(PERIOD).await;
        let now = used_ms();
        if now - before < QUIET_MS {
            let_go().await;
        }
        before = now;
    }
}

/// Processor time of this process so far. Units: milliseconds.
fn used_ms() -> i64 {
    getrusage(UsageWho::RUSAGE_SELF)
        .map_or(0, |usage| usage.user_time().num_milliseconds() + usage.system_time().num_milliseconds())
}

async fn let_go() {
    let done = tokio::task::spawn_blocking(|| {
        let program = std::fs::read_link("/proc/self/exe").unwrap_or_default();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
        text_of(&maps, &program.to_string_lossy()).into_iter().for_each(unmap_pages);
    });
    if let Err(error) = done.await {
        tracing::debug!(%error, "the program's text stays mapped");
    }
}

/// Where a program's text is mapped: what can be executed and not written, and comes from its file. Pure.
fn text_of(maps: &str, program: &str) -> Vec<Range<usize>> {
    let range = |line: &str| {
        let mut words = line.splitn(6, ' ');
        let (range, rights) = (words.next()?, words.next()?);
        let path = words.nth(3)?.trim_start();
        if rights != "r-xp" || program.is_empty() || path != program {
            return None;
        }
        let (start, end) = range.split_once('-')?;
        Some(usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
    };
    maps.lines().filter_map(range).collect()
}

/// Takes the pages of a range of text out of this process' map. They stay in the page cache.
#[allow(unsafe_code)]
fn unmap_pages(range: Range<usize>) {
    // SAFETY: the range is a mapping of this program's own file that nothing can write to, so each page that goes comes back
    // from the file as it was; only the time of the next touch changes.
    let result = unsafe { libc::madvise(range.start as *mut libc::c_void, range.len(), libc::MADV_DONTNEED) };
    if result != 0 {
        tracing::debug!(error = %std::io::Error::last_os_error(), "the program's text stays mapped");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_text_of_the_program_itself_is_found() {
        let maps = "\
55d0a0000000-55d0a0900000 r--p 00000000 fe:00 77                         /usr/bin/nuee
55d0a0900000-55d0a2e00000 r-xp 00900000 fe:00 77                         /usr/bin/nuee
55d0a2e00000-55d0a3000000 r--p 02e00000 fe:00 77                         /usr/bin/nuee
55d0a3000000-55d0a3010000 rw-p 03000000 fe:00 77                         /usr/bin/nuee
7f0000000000-7f0000100000 r-xp 00028000 fe:00 78                         /usr/lib/libc.so.6
7f0000200000-7f0000201000 r-xp 00000000 00:00 0                          [vdso]
7f0000300000-7f0000301000 r-xp 00000000 00:00 0
";
        let found = text_of(maps, "/usr/bin/nuee");
        assert_eq!((found.len(), found.first()), (1, Some(&(0x55d0_a090_0000..0x55d0_a2e0_0000))));
        assert!(text_of(maps, "").is_empty());
        assert!(text_of("", "/usr/bin/nuee").is_empty());
    }

    /// A function far from all others that run here.
    #[inline(never)]
    fn answer(number: u64) -> u64 {
        std::hint::black_box(number).wrapping_mul(21)
    }

    #[tokio::test]
    async fn the_program_goes_on_after_its_text_was_let_go() {
        assert_eq!(answer(2), 42);
        let_go().await;
        assert_eq!(answer(2), 42);
        assert!(used_ms() >= 0);
    }
}
