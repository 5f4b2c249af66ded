#!/bin/sh
# Runs fuzz targets with coverage: fuzz/run.sh TARGET|all [SECONDS]
set -eu
cd "$(dirname "$0")"
target=${1:?name a target, or all}
seconds=${2:-60}

if [ "$target" = all ]; then
    targets=$(basename -s .rs fuzz_targets/*.rs)
else
    targets=$target
fi

export RUSTC_BOOTSTRAP=1
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1"
for name in $targets; do
    host=$(rustc -vV | sed -n 's/^host: //p')
    # Only the crate that the target is about, so that one target is built in a minute.
    crate=$(sed -n 's/^..! Fuzzes `\([a-z]*\)::.*/\1/p' "fuzz_targets/$name.rs")
    features=$([ "$crate" = store ] || echo "--features $crate")
    # shellcheck disable=SC2086
    cargo build --release --quiet --target "$host" --no-default-features $features --bin "$name"
    mkdir -p "corpus/$name" "artifacts/$name"
    echo "== $name, $seconds s"
    "target/$host/release/$name" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
        -artifact_prefix="artifacts/$name/" "corpus/$name" 2>&1 | tail -n 12
done
