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
    if let Err(error) = runtime::memory::file_relocated_constants() {
        tracing::debug!(%error, "relocated constants stay where they are");
    }
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
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn the_third_field_is_what_comes_from_files() {
        assert_eq!(shared_pages("27230 11502 9812 13012 0 5120 0\n"), Some(9812));
        assert_eq!(shared_pages("27230 11502"), None);
        assert_eq!(shared_pages("1 2 many"), None);
        assert!(mapped() > 0);
    }

    /// How many pages of these bytes are in this process' map: of the eight bytes that say so for each, the highest bit (`Source:` proc(5),
    /// `pagemap`).
    fn mapped_pages(bytes: &[u8], page: usize) -> usize {
        let (first, count) = (bytes.as_ptr() as usize / page, bytes.len() / page);
        let mut entries = vec![0_u8; count * 8];
        let pages = std::fs::File::open("/proc/self/pagemap").unwrap();
        pages.read_exact_at(&mut entries, (first * 8) as u64).unwrap();
        entries.as_chunks::<8>().0.iter().filter(|entry| u64::from_ne_bytes(**entry) >> 63 == 1).count()
    }

    /// Reads a byte of each page. Their sum.
    fn touch(bytes: &[u8], page: usize) -> usize {
        std::hint::black_box(bytes).iter().step_by(page).copied().map(usize::from).sum()
    }

    #[tokio::test]
    async fn what_was_let_go_is_not_mapped_and_comes_back_as_it_was() {
        static CONSTANT: [u8; 1 << 20] = [7; 1 << 20];
        let page = runtime::memory::page_size();
        let pages = CONSTANT.len() / page;
        assert_eq!(touch(&CONSTANT, page), 7 * pages);
        let before = mapped_pages(&CONSTANT, page);
        assert!(before > pages / 2, "{before} of {pages}");
        let_go().await;
        // What is beside it, and touched meanwhile, may bring its ends along.
        let after = mapped_pages(&CONSTANT, page);
        assert!(after < pages / 2, "{after} of {pages}");
        assert_eq!(touch(&CONSTANT, page), 7 * pages);
        assert!(used_ms() >= 0);
    }
}
