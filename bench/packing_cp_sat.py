#!/usr/bin/env python3
"""Packs the generated instances with OR-tools CP-SAT, for comparison with `placement::pack`.

    python3 -m venv VENV && VENV/bin/pip install ortools
    cargo run --release -p placement --example packing -- --print uniform 3 200 | VENV/bin/python bench/packing_cp_sat.py

Reads one instance: bins' capacity in the first line, an item's sizes in each other. The model counts items of each type in each bin,
with as many bins as first fit decreasing needs, bins in order of use, and the volume bound; it starts from first fit decreasing.
`--seconds` (120) and `--workers` (1) limit it.
"""

import argparse
import collections
import sys
import time

from ortools.sat.python import cp_model


def first_fit_decreasing(capacity, sizes):
    """The bins that first fit decreasing makes, as counts of each type."""
    bins = []
    for size in sorted(sizes, key=lambda size: -sum(part / most for part, most in zip(size, capacity))):
        for room, counts in bins:
            if all(part <= left for part, left in zip(size, room)):
                break
        else:
            room, counts = list(capacity), collections.Counter()
            bins.append((room, counts))
        for axis, part in enumerate(size):
            room[axis] -= part
        counts[size] += 1
    return [counts for _, counts in bins]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    lines = [tuple(int(word) for word in line.split()) for line in sys.stdin if line.strip()]
    capacity, sizes = lines[0], lines[1:]
    types = collections.Counter(sizes)
    start = first_fit_decreasing(capacity, sizes)

    begin = time.monotonic()
    model = cp_model.CpModel()
    used = [model.new_bool_var(f"used{index}") for index in range(len(start))]
    counts = [
        {size: model.new_int_var(0, demand, "") for size, demand in types.items()} for _ in range(len(start))
    ]
    for size, demand in types.items():
        model.add(sum(counts[index][size] for index in range(len(start))) == demand)
    for index, held in enumerate(counts):
        for axis, most in enumerate(capacity):
            model.add(sum(size[axis] * count for size, count in held.items()) <= most * used[index])
        if index:
            model.add_implication(used[index], used[index - 1])
        model.add_hint(used[index], True)
        for size, count in held.items():
            model.add_hint(count, start[index][size])
    totals = [sum(size[axis] for size in sizes) for axis in range(len(capacity))]
    bound = max(-(-total // most) for total, most in zip(totals, capacity))
    model.add(sum(used) >= bound)
    model.minimize(sum(used))
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = arguments.seconds
    solver.parameters.num_workers = arguments.workers
    status = solver.solve(model)
    found = int(solver.objective_value) if status in (cp_model.OPTIMAL, cp_model.FEASIBLE) else None
    print(
        f"items {len(sizes)}, types {len(types)}, first fit decreasing {len(start)}, CP-SAT {found}, "
        f"its bound {solver.best_objective_bound:.0f}, {solver.status_name(status)}, {time.monotonic() - begin:.0f} s"
    )


if __name__ == "__main__":
    main()
