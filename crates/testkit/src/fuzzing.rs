//! Bounded, repeatable fuzzing in every run of the tests: inputs of a corpus, and random changes of them from a fixed seed. The real
//! fuzzers under `fuzz/` run the same targets for as long as one likes.

/// Where the randomness starts unless `NUEE_FUZZ_SEED` says otherwise; fixed, so that a run can be repeated.
const SEED: u64 = 0x6e75_6565;
/// Longest input that is made. Units: bytes.
const MAX_INPUT_BYTES: usize = 4096;

/// Runs the target on every input of the corpus and on `rounds` changed ones. When it panics, the input is printed.
pub fn smoke(corpus: &[&[u8]], rounds: u32, target: impl Fn(&[u8])) {
    let seed = std::env::var("NUEE_FUZZ_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(SEED);
    let mut random = Random(seed);
    for input in corpus {
        run(seed, input, &target);
    }
    run(seed, b"", &target);
    for _ in 0..rounds {
        let mut input = corpus.get(random.below(corpus.len())).map_or_else(Vec::new, |input| input.to_vec());
        for _ in 0..=random.below(6) {
            change(&mut input, corpus, &mut random);
        }
        input.truncate(MAX_INPUT_BYTES);
        run(seed, &input, &target);
    }
}

fn run(seed: u64, input: &[u8], target: &impl Fn(&[u8])) {
    struct Shown<'a>(u64, &'a [u8]);
    impl Drop for Shown<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("seed {}, input b\"{}\"", self.0, self.1.escape_ascii());
            }
        }
    }
    let _shown = Shown(seed, input);
    target(input);
}

fn change(input: &mut Vec<u8>, corpus: &[&[u8]], random: &mut Random) {
    let at = random.below(input.len() + 1);
    let end = at + random.below(input.len() - at + 1).min(32);
    match random.below(8) {
        0 => input.insert(at, random.byte()),
        1 => drop(input.drain(at..end)),
        2 if at < input.len() => input[at] ^= 1 << random.below(8),
        3 if at < input.len() => input[at] = random.byte(),
        4 => {
            let piece = input[at..end].to_vec();
            let to = random.below(input.len() + 1);
            input.splice(to..to, piece);
        }
        5 => {
            let other = corpus.get(random.below(corpus.len())).copied().unwrap_or_default();
            let from = random.below(other.len() + 1);
            let piece = &other[from..(from + random.below(64)).min(other.len())];
            input.splice(at..at, piece.iter().copied());
        }
        6 => {
            const STRANGE: [&[u8]; 8] = [
                b"\0",
                b"\xff\xff\xff\xff",
                b"-1",
                b"18446744073709551616",
                b"1e999",
                b"\xf0\x9f\xa6\x80",
                b"..",
                b"~01",
            ];
            input.splice(at..at, STRANGE[random.below(STRANGE.len())].iter().copied());
        }
        _ => input.truncate(at),
    }
}

/// Numbers that look random and are the same every time. `Source:` Steele, Lea, Flood: SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap_or_default().checked_rem(bound).unwrap_or_default()
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn the_same_inputs_come_every_time_and_reach_a_rare_branch() {
        let all = || {
            let seen = RefCell::new(Vec::new());
            smoke(&[b"abc", b"[{}]"], 2_000, |input| seen.borrow_mut().push(input.to_vec()));
            seen.into_inner()
        };
        let first = all();
        assert_eq!(first, all());
        assert!(first.iter().any(|input| input.contains(&b'\0')) && first.iter().any(|input| input.len() > 10));
    }

    #[test]
    #[should_panic(expected = "found")]
    fn a_target_that_panics_fails_the_test() {
        smoke(&[b"abc"], 10_000, |input| assert!(!input.starts_with(b"ac"), "found"));
    }
}
