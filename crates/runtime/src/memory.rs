//! What of the program is mapped. The kernel keeps each page that was touched once in a process' map; a process that waits does
//! without most of them, and finds them in the page cache at the next touch.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::OnceLock;

use nix::unistd::{SysconfVar, sysconf};
use rustix::fs::{MemfdFlags, SealFlags};

/// What is in a file since [`file_relocated_constants`].
static FILED: OnceLock<Range<usize>> = OnceLock::new();
/// A program with more of them than this is left alone. Units: bytes.
const RELOCATED_MAX: usize = 64 << 20;

/// Takes the text and the constants of the program and its libraries out of this process' map. They stay in the page cache, out of
/// which the kernel may take them, and come back by themselves.
pub fn let_go_of_constants() {
    constant_segments().into_iter().chain(FILED.get().cloned()).for_each(unmap_pages);
}

/// Puts the program's relocated constants (tables of functions above all) into a file in memory that nobody can change, and maps
/// that in their place: by themselves they are each process' own memory, which cannot be let go. Shared with processes that are
/// forked later. Once in a process; a second call does nothing.
///
/// Errors: the program has none, they can be written to, or the kernel refuses the file; all stays as it was.
#[allow(unsafe_code)]
pub fn file_relocated_constants() -> io::Result<()> {
    if FILED.get().is_some() {
        return Ok(());
    }
    let range = relocated_constants();
    if range.is_empty() || range.len() > RELOCATED_MAX || !is_read_only(&range)? {
        return Err(io::Error::other("no relocated constants to put into a file"));
    }
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(rustix::fs::memfd_create("relocated", flags)?);
    // SAFETY: the loader's range, which is mapped for reading alone (looked at above) for as long as the program runs.
    file.write_all(unsafe { std::slice::from_raw_parts(range.start as *const u8, range.len()) })?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    // SAFETY: takes the place of exactly these pages, in one step and with the same bytes, which nobody can change from now on:
    // no reader sees a difference, and nobody could write before.
    let mapped = unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_FIXED;
        libc::mmap(range.start as *mut libc::c_void, range.len(), libc::PROT_READ, flags, file.as_raw_fd(), 0)
    };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // Two that come at once have mapped the same bytes.
    let _ = FILED.set(range);
    Ok(())
}

/// Whether all of a range is mapped, and for reading alone. `Source:` proc_pid_maps(5)
fn is_read_only(range: &Range<usize>) -> io::Result<bool> {
    let table = std::fs::read_to_string("/proc/self/maps")?;
    let mut reached = range.start;
    for (mapped, permissions) in table.lines().filter_map(mapping) {
        if mapped.contains(&reached) && permissions.starts_with("r--") {
            reached = mapped.end;
        }
    }
    Ok(reached >= range.end)
}

/// Addresses and permissions of a line of `maps`. Pure.
fn mapping(line: &str) -> Option<(Range<usize>, &str)> {
    let mut words = line.split(' ');
    let (start, end) = words.next()?.split_once('-')?;
    Some((usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?, words.next()?))
}

/// What the kernel maps at once. Units: bytes.
pub fn page_size() -> usize {
    let size = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    size.and_then(|size| usize::try_from(size).ok()).unwrap_or(4096)
}

/// Where the program has constants that the loader has relocated and then protected. Whole pages, addresses in memory; empty if none.
#[allow(unsafe_code, clippy::cast_possible_truncation)] // The loader's words are as wide as an address.
fn relocated_constants() -> Range<usize> {
    unsafe extern "C" fn find(info: *mut libc::dl_phdr_info, _: libc::size_t, into: *mut libc::c_void) -> libc::c_int {
        // SAFETY: the loader hands in a description that is valid during the call, and `into` is the range below.
        let (info, into) = unsafe { (&*info, &mut *into.cast::<Range<usize>>()) };
        if !info.dlpi_phdr.is_null() {
            // SAFETY: the description says how many headers there are.
            let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
            for header in headers.iter().filter(|header| header.p_type == libc::PT_GNU_RELRO) {
                let start = (info.dlpi_addr as usize).wrapping_add(header.p_vaddr as usize);
                *into = whole_pages(start..start.saturating_add(header.p_memsz as usize), page_size());
            }
        }
        // The first is the program; its libraries' are small.
        1
    }
    let mut found = 0..0;
    // SAFETY: `find` is called during this call only, with a pointer to `found`, which nobody else uses meanwhile.
    unsafe { libc::dl_iterate_phdr(Some(find), (&raw mut found).cast()) };
    found
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

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
    fn relocated_constants_are_the_same_out_of_a_file() {
        static RELOCATED: [&(dyn Fn(u64) -> u64 + Sync); 2] = [&|number| number + 1, &|number| number * 2];
        let sum = || std::hint::black_box(&RELOCATED).iter().map(|function| function(10)).sum::<u64>();
        assert!(relocated_constants().contains(&(RELOCATED.as_ptr() as usize)));
        file_relocated_constants().unwrap();
        assert_eq!(sum(), 31);
        file_relocated_constants().unwrap();
        let_go_of_constants();
        assert_eq!(sum(), 31);
        let table = std::fs::read_to_string("/proc/self/maps").unwrap();
        let start = relocated_constants().start;
        let own = table.lines().find(|line| mapping(line).is_some_and(|(range, _)| range.contains(&start))).unwrap();
        assert!(own.contains("memfd:relocated") && own.contains(" r--p "), "{own}");
    }

    #[test]
    fn what_can_be_written_to_is_not_read_only() {
        static WRITTEN: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(1);
        let start = &raw const WRITTEN as usize / page_size() * page_size();
        assert!(!is_read_only(&(start..start + page_size())).unwrap());
        assert!(!is_read_only(&(0..page_size())).unwrap(), "not mapped");
        assert!(is_read_only(&relocated_constants()).unwrap());
    }

    /// A function far from all others that run here.
    #[inline(never)]
    fn answer(number: u64) -> u64 {
        std::hint::black_box(number).wrapping_mul(21)
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

    #[test]
    fn what_was_let_go_is_not_mapped_and_comes_back_as_it_was() {
        static CONSTANT: [u8; 1 << 20] = [7; 1 << 20];
        let page = page_size();
        let pages = CONSTANT.len() / page;
        assert_eq!(touch(&CONSTANT, page), 7 * pages);
        let before = mapped_pages(&CONSTANT, page);
        assert!(before > pages / 2, "{before} of {pages}");
        let_go_of_constants();
        // What is beside it, and touched meanwhile, may bring its ends along.
        let after = mapped_pages(&CONSTANT, page);
        assert!(after < pages / 2, "{after} of {pages}");
        assert_eq!((touch(&CONSTANT, page), answer(2)), (7 * pages, 42));
    }
}
