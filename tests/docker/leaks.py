#!/usr/bin/env python3
"""The leak test: after hundreds of mixed operations and the removal of what they made, the machine is as before: processes, mounts,
interfaces, network namespaces, nftables, control groups, files, and the daemon's descriptors.

    tests/docker/leaks.py --nuee target/debug/nuee [--operations 500] [--seed 1]

At the end one container is left on purpose, which the same comparison must find: a comparison that sees nothing proves nothing.
"""
import argparse
import json
import pathlib
import random
import re
import sys
import time

import peers

# Time that the machine has to come to rest after the last removal.
REST_SECONDS = 60
# The daemon may hold a few more descriptors than before: connections that are being closed.
SPARE_DESCRIPTORS = 12


def processes(nuee):
    """Processes that name the data directory, but for the daemon itself."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(nuee.data) in line and " shim " in f" {line} ":
                found.append(line.strip())
    return found


def control_groups(nuee):
    found = []
    for root in [path for path in pathlib.Path("/sys/fs/cgroup").iterdir() if path.is_dir()]:
        for group in root.glob("nuee-*/*"):
            if group.is_dir():
                found.append(str(group))
    own = {name for name in found if pathlib.Path(name).parent.name == nuee.group}
    return sorted(own)


def snapshot(nuee):
    """Everything that an operation might leave behind, as sets of lines."""
    lines = lambda *words: nuee.run(words, capture_output=True, text=True).stdout.splitlines()
    mounts = [line.split(" - ")[0].split()[4] for line in pathlib.Path(f"/proc/{nuee.space.holder.pid}/mountinfo").read_text().splitlines()]
    files = []
    for place in ("containers", "volumes", "run", "network", "images/snapshots", "images/uploads", "images/tmp"):
        root = nuee.data / place
        files += [str(path.relative_to(nuee.data)) for path in root.rglob("*")] if root.exists() else []
    rules = [re.sub(r"counter packets \d+ bytes \d+|# handle \d+|expires \S+", "", line).strip() for line in lines("nft", "list", "ruleset")]
    return {
        "processes": processes(nuee),
        "mounts": mounts,
        "interfaces": [line.split(": ")[1].split("@")[0] for line in lines("ip", "-o", "link")],
        "rules": [rule for rule in rules if rule],
        "control groups": control_groups(nuee),
        "files": files,
    }


def descriptors(nuee):
    return len(list(pathlib.Path(f"/proc/{nuee.pid}/fd").iterdir()))


def differences(before, after):
    found = []
    for kind, old in before.items():
        new = list(after[kind])
        for line in old:
            if line in new:
                new.remove(line)
        found += [f"{kind}: {line}" for line in new]
    return found


def settle(nuee, before):
    """Waits until nothing is left; what is left when the time is over."""
    end = time.monotonic() + REST_SECONDS
    while True:
        left = differences(before, snapshot(nuee))
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.5)


class Operations:
    """What a user might do, in random order. Failures of single operations are part of it."""

    def __init__(self, nuee, seed):
        self.nuee, self.random, self.count = nuee, random.Random(seed), 0

    def docker(self, *words):
        return self.nuee.docker(*words, check=False)

    def name(self, kind):
        return f"{kind}{self.random.randrange(6)}"

    def step(self):
        pick = self.random
        container, network, volume = self.name("c"), self.name("n"), self.name("v")
        operation = pick.choice([
            ["run", "--rm", "busybox", "true"],
            ["run", "--rm", "--network", network, "-v", f"{volume}:/v", "busybox", "sh", "-c", "echo x > /v/x"],
            ["run", "-d", "--name", container, "busybox", "sleep", "600"],
            ["run", "-d", "--name", container, "-p", f"{8000 + pick.randrange(6)}:80", "--restart", "always", "busybox", "sleep", "1"],
            ["run", "-d", "--name", container, "--network", network, "--memory", "32m", "--tmpfs", "/t", "busybox", "sleep", "600"],
            ["run", "--name", container, "-v", "/anonymous", "busybox", "false"],
            ["run", "--rm", "busybox", "no-such-program"],
            ["create", "--name", container, "-v", f"{volume}:/v", "busybox", "true"],
            ["start", container], ["stop", "-t", "0", container], ["kill", container], ["restart", "-t", "0", container],
            ["pause", container], ["unpause", container], ["exec", container, "true"], ["exec", "-d", container, "sleep", "1"],
            ["exec", container, "no-such-program"], ["logs", container], ["cp", f"{container}:/etc/passwd", "/dev/null"],
            ["commit", container, f"made:{pick.randrange(3)}"], ["rmi", "-f", f"made:{pick.randrange(3)}"], ["diff", container],
            ["rename", container, self.name("c")], ["rm", container], ["rm", "-fv", container],
            ["network", "create", network], ["network", "connect", network, container], ["network", "disconnect", network, container],
            ["network", "rm", network], ["volume", "create", volume], ["volume", "rm", volume],
            ["update", "--memory", "64m", "--memory-swap", "64m", container], ["wait", "nosuch"], ["stats", "--no-stream", container],
        ])
        self.docker(*operation)
        self.count += 1

    def clean(self):
        ids = self.docker("ps", "-aq").stdout.split()
        if ids:
            self.docker("unpause", *ids)
            self.docker("rm", "-fv", *ids)
        self.docker("network", "prune", "-f")
        names = self.docker("volume", "ls", "-q").stdout.split()
        if names:
            self.docker("volume", "rm", *names)
        self.docker("rmi", "-f", *[f"made:{number}" for number in range(3)])
        self.docker("image", "prune", "-f")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nuee", required=True, help="the program")
    parser.add_argument("--operations", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    with peers.Nuee(options.nuee, options.keep) as nuee:
        nuee.docker("pull", "-q", "busybox")
        operations = Operations(nuee, options.seed)
        # The first ones make what stays: directories, tables, the bridge.
        for words in (["network", "create", "n0"], ["volume", "create", "v0"], ["run", "--rm", "--network", "n0", "-v", "v0:/v", "busybox", "true"],
                      ["run", "-d", "--rm", "--name", "warm", "-p", "8000:80", "busybox", "sleep", "600"], ["commit", "warm", "made:0"]):
            nuee.docker(*words)
        operations.clean()
        nuee.pid = json.loads(nuee.nuee("status", "-o", "json").stdout)["pid"]
        nuee.group = next(word for word in pathlib.Path("/sys/fs/cgroup/memory").iterdir() if word.name.startswith("nuee-")
                          and word.name == f"nuee-{instance(nuee.data)}").name
        time.sleep(2)
        before, held = snapshot(nuee), descriptors(nuee)
        while operations.count < options.operations:
            operations.step()
        operations.clean()
        left = settle(nuee, before)
        more = descriptors(nuee) - held
        if more > SPARE_DESCRIPTORS:
            left.append(f"descriptors: {more} more than before")
        nuee.docker("run", "-d", "--name", "forgotten", "-v", "kept:/v", "busybox", "sleep", "600")
        kinds = {line.split(":")[0] for line in differences(before, snapshot(nuee))}
        missed = {"processes", "interfaces", "control groups", "files"} - kinds
        nuee.docker("rm", "-fv", "forgotten")
    if missed:
        sys.exit(f"the comparison does not see {', '.join(sorted(missed))} of a container that runs")
    if left:
        sys.exit("\n".join([f"left behind after {options.operations} operations:", *left[:60]]))
    print(f"{options.operations} operations left nothing behind ({more:+d} descriptors)")


def instance(data):
    """The name that the daemon gives its control groups: FNV-1a of the data directory's path."""
    value = 0x811C9DC5
    for byte in str(data).encode():
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return f"{value:08x}"


if __name__ == "__main__":
    main()
