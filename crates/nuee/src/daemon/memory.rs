//! Memory that an idle daemon does without. Its start runs through much of the program once, and the kernel then keeps all of
//! that mapped; the allocator keeps what was freed. Both are let go when the daemon is quiet: what is needed of the program
//! is mapped again at the next touch, out of the page cache.

use std::ops::Range;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use nix::unistd::{SysconfVar, sysconf};

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
    shared_pages(&text).unwrap_or(0).saturating_mul(page_size())
}

/// The field `shared` of `statm` (`Source:` proc(5)). Units: pages. Pure.
fn shared_pages(statm: &str) -> Option<usize> {
    statm.split_whitespace().nth(2)?.parse().ok()
}

/// Units: bytes.
fn page_size() -> usize {
    let size = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    size.and_then(|size| usize::try_from(size).ok()).unwrap_or(4096)
}

async fn let_go() {
    let done = tokio::task::spawn_blocking(|| {
        constant_segments().into_iter().for_each(unmap_pages);
        give_back_freed();
    });
    if let Err(error) = done.await {
        tracing::debug!(%error, "the program stays mapped");
    }
}

/// Where the program and its libraries have their text and constants: what is loaded without the right to write. What the
/// loader relocates and then protects is not among it: a segment says what it was before. Whole pages, addresses in memory.
#[allow(unsafe_code, clippy::cast_possible_truncation)] // The loader's words are as wide as an address.
fn constant_segments() -> Vec<Range<usize>> {
    unsafe extern "C" fn add(info: *mut libc::dl_phdr_info, _: libc::size_t, into: *mut libc::c_void) -> libc::c_int {
        // SAFETY: the loader hands in a description that is valid during the call, and `into` is the list below.
        let (info, into) = unsafe { (&*info, &mut *into.cast::<Vec<Range<usize>>>()) };
        if info.dlpi_phdr.is_null() || info.dlpi_addr as usize == vdso() {
            return 0;
        }
        // SAFETY: the description says how many headers there are.
        let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
        for header in headers.iter().filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0)
        {
            let start = (info.dlpi_addr as usize).wrapping_add(header.p_vaddr as usize);
            into.push(whole_pages(start..start.saturating_add(header.p_filesz as usize), page_size()));
        }
        0
    }
    let mut found: Vec<Range<usize>> = Vec::new();
    // SAFETY: `add` is called during this call only, with a pointer to `found`, which nobody else uses meanwhile.
    unsafe { libc::dl_iterate_phdr(Some(add), (&raw mut found).cast()) };
    found
}

/// Where the kernel's own code is in this process, which comes from no file.
#[allow(unsafe_code, clippy::cast_possible_truncation)] // A word of the vector is as wide as an address.
fn vdso() -> usize {
    // SAFETY: reads a word of the vector that the kernel gave to this process; 0 if there is none of that name.
    unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) as usize }
}

/// The pages that a range covers from end to end: others hold the neighbour's bytes too. Pure.
fn whole_pages(range: Range<usize>, page: usize) -> Range<usize> {
    range.start.next_multiple_of(page)..range.end / page * page
}

/// Takes constant pages out of this process' map. They stay in the page cache.
#[allow(unsafe_code)]
fn unmap_pages(range: Range<usize>) {
    if range.is_empty() {
        return;
    }
    // SAFETY: the range is in a mapping of a program's own file that nothing writes to, so each page that goes comes back
    // from the file as it was; only the time of the next touch changes.
    let result = unsafe { libc::madvise(range.start as *mut libc::c_void, range.len(), libc::MADV_DONTNEED) };
    if result != 0 {
        tracing::debug!(error = %std::io::Error::last_os_error(), "the program stays mapped");
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
    fn segments_are_text_and_constants_and_nothing_that_changes() {
        static CONSTANT: [u8; 3 << 12] = [7; 3 << 12];
        static WRITTEN: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(1);
        static RELOCATED: [&(dyn Fn() -> u8 + Sync); 1] = [&|| 7];
        let found = constant_segments();
        let holds = |address: usize| found.iter().any(|range| range.contains(&address));
        assert!(holds(answer as *const () as usize));
        assert!(holds(CONSTANT.as_ptr() as usize + (1 << 12)));
        assert!(!holds(&raw const WRITTEN as usize));
        assert!(!holds(RELOCATED.as_ptr() as usize));
        assert!(!holds(vdso()));
        let page = page_size();
        assert!(found.iter().all(|range| range.start.is_multiple_of(page) && range.end.is_multiple_of(page)));
    }

    #[test]
    fn pages_that_are_shared_with_a_neighbour_stay() {
        assert_eq!(whole_pages(4096..12288, 4096), 4096..12288);
        assert_eq!(whole_pages(4097..12287, 4096), 8192..8192);
        assert!(whole_pages(4097..5000, 4096).is_empty());
    }

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
