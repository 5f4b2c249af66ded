//! Memory that an idle daemon does without. Its start runs through much of the program once, and the kernel then keeps all of
//! that mapped; the allocator keeps what was freed. Both are let go when the daemon is quiet: what is needed of the program
//! is mapped again at the next touch, out of the page cache.

use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

/// How long after the start the daemon is let alone.
const START: Duration = Duration::from_secs(1);
/// How often it is looked whether the daemon is quiet.
const PERIOD: Duration = Duration::from_secs(10);
/// Processor time in a period below which it is: less than the smallest command of a client takes. Units: milliseconds.
const QUIET_MS: i64 = 30;
/// Memory of files that may stay mapped: below it, letting go costs more than it gains. Units: bytes.
const MAPPED: usize = 10 << 20;

/// Lets go after the start, and whenever the daemon is quiet and more of the program is mapped than a quiet daemon needs. Never
/// ends.
pub async fn keep_small() {
    tokio::time::sleep(START).await;
    let_go().await;
    let mut before = used_ms();
    loop {
        tokio::time::sleep(PERIOD).await;
        let now = used_ms();
        if now - before < QUIET_MS && mapped() > MAPPED {
            let_go().await;
        }
        before = used_ms();
    }
}

/// Processor time of this process so far. Units: milliseconds.
fn used_ms() -> i64 {
    getrusage(UsageWho::RUSAGE_SELF)
        .map_or(0, |usage| usage.user_time().num_milliseconds() + usage.system_time().num_milliseconds())
}

/// How much of files is mapped and in memory, the program and its libraries above all. Units: bytes. 0 if nobody says.
fn mapped() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    shared_pages(&text).unwrap_or(0).saturating_mul(runtime::memory::page_size())
}

/// The field `shared` of `statm` (`Source:` proc(5)). Units: pages. Pure.
fn shared_pages(statm: &str) -> Option<usize> {
    statm.split_whitespace().nth(2)?.parse().ok()
}

async fn let_go() {
    let done = tokio::task::spawn_blocking(|| {
        runtime::memory::let_go_of_constants();
        give_back_freed();
    });
    if let Err(error) = done.await {
        tracing::debug!(%error, "the program stays mapped");
    }
}

/// Gives memory that was allocated and freed back to the kernel, which glibc does by itself for the end of its heap only.
#[allow(unsafe_code)]
fn give_back_freed() {
    #[cfg(target_env = "gnu")]
    // SAFETY: touches what the allocator has free, under the allocator's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_third_field_is_what_comes_from_files() {
        assert_eq!(shared_pages("27230 11502 9812 13012 0 5120 0\n"), Some(9812));
        assert_eq!(shared_pages("27230 11502"), None);
        assert_eq!(shared_pages("1 2 many"), None);
        assert!(mapped() > 0);
    }

    /// A function far from all others that run here.
    #[inline(never)]
    fn answer(number: u64) -> u64 {
        std::hint::black_box(number).wrapping_mul(21)
    }

    #[tokio::test]
    async fn the_program_goes_on_after_it_was_let_go() {
        assert_eq!(answer(2), 42);
        let_go().await;
        assert_eq!(answer(2), 42);
        assert!(used_ms() >= 0);
    }
}
