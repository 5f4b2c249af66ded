#!/usr/bin/env python3
"""Compares virtual machines under Nuée with a bare qemu-system, side by side in one run: time from the request to the guest's
userland, memory beside QEMU, the clone of a template, and what the balloon takes back per second.

Both boot the same kernel, RAM disk and disk, with 128 MiB, and the runs alternate. Userland is the first line of the test guest's
start script; configured is its last line, which under Nuée comes after it took its name and key from the metadata service, and on
bare QEMU after it found none.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

USERLAND = "nuee test guest userland"
READY = "nuee test guest ready"
MEMORY = 128


class Space:
    """Network and mount namespaces, held open by a process."""

    def __init__(self):
        words = ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", "ip link set lo up && echo up && exec cat"]
        self.holder = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.holder.stdout.readline().strip() == "up"

    def command(self, *words):
        return ["nsenter", "--net", "--mount", "--target", str(self.holder.pid), "--", *map(str, words)]

    def close(self):
        self.holder.stdin.close()
        self.holder.wait()


def until(what, holds, patience=300):
    end = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < end, f"not in time: {what}"
        time.sleep(0.005)


def resident_mib(pid):
    """Resident memory of a process."""
    lines = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Rss:")) / 1024


def says(log, line):
    return log.exists() and line in log.read_text(errors="replace")


def says_ready(log):
    return says(log, READY)


def boot_times(begun, log):
    """Times to the userland and to its configuration. Units: seconds."""
    until("the guest's userland", lambda: says(log, USERLAND))
    userland = time.monotonic() - begun
    until("the guest is up", lambda: says_ready(log))
    return userland, time.monotonic() - begun


class Nuee:
    def __init__(self, program, space, data):
        self.program, self.space, self.data = program, space, data
        self.run("up", "--detach")
        self.run("image", "build-test-guest", "-o", "tiny")

    def run(self, *words):
        command = self.space.command(self.program, *words, "--data-dir", self.data)
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def kubectl(self, *words, text=None):
        env = dict(os.environ, KUBECONFIG=str(self.data / "kubeconfig"))
        command = self.space.command("kubectl", *words)
        return subprocess.run(command, check=True, capture_output=True, text=True, env=env, input=text).stdout

    def apply(self, name, kind="VirtualMachine", **spec):
        spec = spec or {"image": "tiny", "cpus": 1, "memory": f"{MEMORY}Mi"}
        body = {"apiVersion": "nuee.dev/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}
        self.kubectl("apply", "-f", "-", text=json.dumps(body))

    def log(self, name):
        uid = self.kubectl("get", "vm", name, "-o", "jsonpath={.metadata.uid}")
        return self.data / "guests" / uid / "console.log"

    def pid(self):
        return json.loads(self.run("status", "-o", "json"))["pid"]


def boot_nuee(nuee, index):
    begun = time.monotonic()
    nuee.apply(f"boot{index}")
    took = boot_times(begun, nuee.log(f"boot{index}"))
    nuee.kubectl("delete", "vm", f"boot{index}")
    return took


def boot_bare(guest, directory, index):
    log, disk = directory / f"bare{index}.log", directory / f"bare{index}.qcow2"
    begun = time.monotonic()
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", guest / "disk.qcow2", disk], check=True)
    process = subprocess.Popen(
        ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-machine", "pc,accel=tcg", "-cpu", "max",
         "-m", str(MEMORY), "-kernel", guest / "kernel", "-initrd", guest / "initrd", "-append", "console=ttyS0 quiet panic=1",
         "-drive", f"file={disk},format=qcow2,if=virtio", "-serial", f"file:{log}", "-nic", "user,model=virtio-net-pci"],
        stderr=subprocess.DEVNULL)
    took = boot_times(begun, log)
    process.kill()
    process.wait()
    return took


def memory_per_machine(nuee):
    """What the daemon grows by for each of a few machines; nothing else of Nuée stays beside QEMU."""
    before = resident_mib(nuee.pid())
    count = 2  # As many as fit on two processors: one is reserved for each.
    for index in range(count):
        nuee.apply(f"memory{index}")
        log = nuee.log(f"memory{index}")
        until("the guest is up", lambda log=log: says_ready(log))
    grown = resident_mib(nuee.pid()) - before
    for index in range(count):
        nuee.kubectl("delete", "vm", f"memory{index}")
    return grown / count


def balloon(nuee):
    nuee.apply("balloon", image="tiny", cpus=1, memory="512Mi")
    log = nuee.log("balloon")
    until("the guest is up", lambda: says_ready(log))
    begun = time.monotonic()
    target = 128 << 20
    nuee.kubectl("patch", "vm", "balloon", "--type=merge", "-p", json.dumps({"spec": {"memoryTarget": str(target)}}))
    read = lambda: int(nuee.kubectl("get", "vm", "balloon", "-o", "jsonpath={.status.memoryBytes}") or 0)
    until("the balloon is full", lambda: 0 < read() <= target)
    took = time.monotonic() - begun
    nuee.kubectl("delete", "vm", "balloon")
    return (512 - 128) / took


def clone(root):
    """The median of clones of a 1 GiB template to a disk that boots, in this machine's file system."""
    command = ["cargo", "run", "--quiet", "--release", "-p", "hypervisor", "--example", "bench-clone"]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, cwd=root).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nuee", required=True)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    root = pathlib.Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory(prefix="bench-vm-") as directory:
        directory, space = pathlib.Path(directory), Space()
        nuee = Nuee(pathlib.Path(arguments.nuee).resolve(), space, directory / "data")
        try:
            guest = sorted(pathlib.Path("/var/cache/nuee").glob("test-guest-*"))[-1]
            boot_nuee(nuee, "warm")
            ours, bare = [], []
            for index in range(arguments.runs):
                ours.append(boot_nuee(nuee, index))
                bare.append(boot_bare(guest, directory, index))
            (ours, ours_all), (bare, bare_all) = (map(statistics.median, zip(*runs)) for runs in (ours, bare))
            more, more_all = (ours - bare) * 1000, (ours_all - bare_all) * 1000
            print("| measure | nuee | bare QEMU | bar |\n|---|---|---|---|")
            print(f"| request to guest userland | {ours * 1000:.0f} ms | {bare * 1000:.0f} ms | at most 60 ms more: {more:+.0f} ms |")
            print(f"| request to a configured guest | {ours_all * 1000:.0f} ms | {bare_all * 1000:.0f} ms | {more_all:+.0f} ms |")
            print(f"| memory beside QEMU, per machine | {memory_per_machine(nuee):.2f} MiB | 0 | under 2 MiB |")
            print(f"| clone of a 1 GiB template | {clone(root):.2f} ms | – | under 50 ms |")
            print(f"| balloon, reclaim | {balloon(nuee):.0f} MiB/s | – | – |")
        finally:
            nuee.run("down", "--all")
            space.close()


if __name__ == "__main__":
    main()
