#!/usr/bin/env python3
"""Compares virtual machines under Nuée with a bare qemu-system, side by side in one run: time from the request to the guest's
userland, memory beside QEMU, the clone of a template, what the balloon takes back per second, live migration, and many guests at once.

Both boot the same kernel, RAM disk and disk, with 128 MiB, and the runs alternate. Userland is the first line of the test guest's
start script; configured is its last line, which under Nuée comes after it took its name and key from the metadata service, and on
bare QEMU after it found none.

A migration goes between two machines (namespaces on one switch), or between two QEMUs that this script drives over QMP as Nuée does:
disk mirrored, then memory, over sockets of this host. How long the guest stands still is seen from outside, alike for both: the guest
writes to its console every few milliseconds, and the time is that between the last line which the source's log got and the first of the
target's. It holds everything that keeps the guest from running, the pool's decision too.
"""
import argparse
import contextlib
import json
import os
import pathlib
import socket
import statistics
import subprocess
import tempfile
import threading
import time

USERLAND = "nuee test guest userland"
READY = "nuee test guest ready"
# What the guest's image says; the same for both.
COMMAND_LINE = "console=ttyS0 quiet panic=1 no_timer_check cryptomgr.notests"
MEMORY = 128
TICK = "while :; do echo tick; usleep 4000; done\n"
SWITCH = "198.18.0"


class Space:
    """Network and mount namespaces, held open by a process."""

    def __init__(self):
        words = ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", "ip link set lo up && echo up && exec cat"]
        self.holder = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.holder.stdout.readline().strip() == "up"

    def shell(self, line):
        subprocess.run(self.command("sh", "-c", line), check=True, capture_output=True)

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


def pss_mib(pid):
    """What a process uses of the machine's memory; what several share is divided among them."""
    lines = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


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

    def up(self):
        self.run("up", "--detach")
        self.run("image", "build-test-guest", "-o", "tiny")
        return self

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

    def get(self, kind, name, path):
        return self.kubectl("get", kind, name, "-o", f"jsonpath={{{path}}}")

    def log(self, name):
        return self.data / "guests" / self.get("vm", name, ".metadata.uid") / "console.log"

    def pid(self):
        return json.loads(self.run("status", "-o", "json"))["pid"]


def boot_nuee(nuee, index):
    begun = time.monotonic()
    nuee.apply(f"boot{index}")
    took = boot_times(begun, nuee.log(f"boot{index}"))
    nuee.kubectl("delete", "vm", f"boot{index}")
    return took


# What a guest under Nuée has besides: the chipset and the bus for what comes later, random numbers, a balloon, a port for an agent, a
# notifier of panics, room for one processor more.
SAME_DEVICES = [
    "-machine", "q35,usb=off,vmport=off,graphics=off", "-device", "pcie-pci-bridge,id=pci.0,bus=pcie.0,addr=0x1e", "-smp", "cpus=1,maxcpus=2", "-object", "rng-builtin,id=rng", "-device", "virtio-rng-pci,rng=rng",
    "-device", "virtio-balloon-pci,deflate-on-oom=on,free-page-reporting=on", "-device", "virtio-serial-pci,id=serial",
    "-chardev", "null,id=agent", "-device", "virtserialport,bus=serial.0,chardev=agent,name=org.qemu.guest_agent.0",
    "-device", "pvpanic-pci"]


def boot_bare(guest, directory, index, more=()):
    """Boots a guest under QEMU alone, with `more` arguments."""
    name = f"bare{index}-{len(more)}"
    log, disk = directory / f"{name}.log", directory / f"{name}.qcow2"
    begun = time.monotonic()
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", guest / "disk.qcow2", disk], check=True)
    process = subprocess.Popen(
        ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-machine", "pc,accel=tcg", "-cpu", "max",
         "-m", str(MEMORY), "-kernel", guest / "kernel", "-initrd", guest / "initrd", "-append", COMMAND_LINE,
         "-drive", f"file={disk},format=qcow2,if=virtio", "-serial", f"file:{log}", "-nic", "user,model=virtio-net-pci", *more],
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


def first_tick(log, after, seen):
    """Waits until a log grows; when it did goes into `seen`."""
    while not (log.exists() and log.stat().st_size > after):
        time.sleep(0.0005)
    seen.append(time.time())


def start_ticking(console, log):
    """Types on the guest's console, where a shell comes up a while after the guest said that it is ready."""
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(console))
            connection.sendall(TICK.encode())
            time.sleep(3)
        if log.read_text(errors="replace").count("\ntick") > 3:
            return
    raise AssertionError("no shell takes the line")


def stands_still(source, target, work):
    """Runs a migration; how long it took, and how long the guest wrote to neither log. Units: seconds."""
    seen = []
    watch = threading.Thread(target=first_tick, args=(target, target.stat().st_size if target.exists() else 0, seen), daemon=True)
    watch.start()
    begun = time.monotonic()
    work()
    took = time.monotonic() - begun
    watch.join(60)
    assert seen, "the guest says nothing on the other side"
    return took, seen[0] - source.stat().st_mtime


class Pair:
    """Two machines of one pool, with a guest that ticks on the first."""

    def __init__(self, program, directory):
        self.switch, self.machines = Space(), []
        self.switch.shell(f"ip link add switch type bridge && ip link set switch up && ip addr add {SWITCH}.254/24 dev switch")
        for number in (1, 2):
            space = Space()
            self.switch.shell(f"ip link add port{number} type veth peer name uplink0 netns {space.holder.pid} && ip link set port{number} master switch up")
            space.shell(f"ip addr add {SWITCH}.{number}/24 dev uplink0 && ip link set uplink0 up && ip route add default via {SWITCH}.254")
            data = directory / f"n{number}"
            data.mkdir()
            (data / "config.yaml").write_text(f"nodeName: n{number}\n")
            self.machines.append(Nuee(program, space, data))
        first, second = self.machines
        first.up()
        second.run(*first.run("token", "create").split()[1:], "--detach")
        first.apply("moves", image="tiny", cpus=1, memory=f"{MEMORY}Mi", nodeName="n1")
        until("the guest is up", lambda: says_ready(first.log("moves")))
        self.uid = first.get("vm", "moves", ".metadata.uid")
        start_ticking(first.data / "run" / "guests" / self.uid / "console.sock", first.log("moves"))

    def migrate(self, index):
        first = self.machines[0]
        logs = [machine.data / "guests" / self.uid / "console.log" for machine in self.machines]
        source, target = (0, 1) if index % 2 == 0 else (1, 0)
        # The source's files go with the guest: its log is kept by a second name.
        kept = self.machines[source].data / "kept.log"
        kept.unlink(missing_ok=True)
        os.link(logs[source], kept)
        took = stands_still(kept, logs[target], lambda: first.run("vm", "migrate", "moves", "--to", f"n{target + 1}"))
        # The other side is free for the way back.
        until("nothing of it is left", lambda: not logs[source].exists())
        return took

    def close(self):
        for machine in reversed(self.machines):
            machine.run("down", "--all")
            machine.space.close()
        self.switch.close()


class Qmp:
    def __init__(self, path):
        until(f"{path} is there", path.exists)
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        self.lines = self.socket.makefile("r")
        self.lines.readline()
        self.ask("qmp_capabilities")

    def ask(self, command, **arguments):
        self.socket.sendall((json.dumps({"execute": command, "arguments": arguments}) + "\n").encode())
        while True:
            answer = json.loads(self.lines.readline())
            assert "error" not in answer, (command, answer)
            if "return" in answer:
                return answer["return"]

    def until(self, state):
        until(f"the migration is {state}", lambda: self.ask("query-migrate").get("status") == state)


def bare_qemu(guest, directory, name, disk, *more):
    """A QEMU with the devices and settings of Nuée's guests."""
    log, control, console = directory / f"{name}.log", directory / f"{name}.qmp", directory / f"{name}.console"
    process = subprocess.Popen(
        ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-vga", "none",
         "-accel", "tcg,tb-size=128",
         "-cpu", "max", "-m", str(MEMORY), "-kernel", guest / "kernel", "-initrd", guest / "initrd",
         "-append", COMMAND_LINE, *SAME_DEVICES,
         "-blockdev", json.dumps({"driver": "qcow2", "node-name": "root", "file": {"driver": "file", "filename": str(disk)}, "discard": "unmap"}),
         "-device", "virtio-blk-pci,drive=root,id=disk", "-nic", "user,model=virtio-net-pci",
         "-chardev", f"socket,id=c,path={console},server=on,wait=off,logfile={log},logappend=on",
         "-serial", "chardev:c", "-qmp", f"unix:{control},server=on,wait=off", *more],
        stderr=subprocess.DEVNULL)
    return process, log, control, console


def migrate_bare(guest, directory, index):
    """The same by hand, between two QEMUs."""
    name = f"by-hand{index}"
    disk, size = directory / f"{name}.qcow2", 0
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", guest / "disk.qcow2", disk], check=True)
    size = json.loads(subprocess.run(["qemu-img", "info", "--output=json", disk], check=True, capture_output=True).stdout)["virtual-size"]
    source, log, control, console = bare_qemu(guest, directory, name, disk)
    processes = [source]
    try:
        until("the guest is up", lambda: says_ready(log))
        start_ticking(console, log)
        here = Qmp(control)

        def move():
            other = directory / f"{name}-target.qcow2"
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", other, str(size)], check=True)
            nbd, memory = directory / f"{name}.nbd", directory / f"{name}.memory"
            target, _, there, _ = bare_qemu(guest, directory, f"{name}-target", other, "-incoming", "defer")
            processes.append(target)
            there = Qmp(there)
            there.ask("nbd-server-start", addr={"type": "unix", "data": {"path": str(nbd)}})
            there.ask("block-export-add", type="nbd", id="e", **{"node-name": "root"}, name="root", writable=True)
            there.ask("migrate-incoming", uri=f"unix:{memory}")
            here.ask("blockdev-add", driver="nbd", export="root", **{"node-name": "copy"}, server={"type": "unix", "path": str(nbd)})
            here.ask("blockdev-mirror", device="root", target="copy", sync="full", **{"job-id": "copy", "copy-mode": "background"})
            until("the disk is there", lambda: all(job["ready"] for job in here.ask("query-block-jobs")))
            on = [{"capability": name, "state": True} for name in ("auto-converge", "pause-before-switchover")]
            here.ask("migrate-set-capabilities", capabilities=on)
            here.ask("migrate-set-parameters", **{"max-bandwidth": 1 << 50})
            here.ask("migrate", uri=f"unix:{memory}")
            here.until("pre-switchover")
            here.ask("block-job-cancel", device="copy")
            until("the mirror is off", lambda: not here.ask("query-block-jobs"))
            here.ask("migrate-continue", state="pre-switchover")
            here.until("completed")

        return stands_still(log, directory / f"{name}-target.log", move)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def migrations(program, guest, directory, runs):
    pair = Pair(program, directory)
    try:
        both = [(pair.migrate(index), migrate_bare(guest, directory, index)) for index in range(runs)]
    finally:
        pair.close()
    ours, bare = zip(*both)
    return [statistics.median(column) * 1000 for side in (ours, bare) for column in zip(*side)]


def many(nuee, count):
    """Guests that are asked for at once: time until all run, until all have booted, and memory of each. Units: seconds, MiB."""
    node = nuee.kubectl("get", "nodes", "-o", "jsonpath={.items[0].metadata.name}")
    before = resident_mib(nuee.pid())
    # Bound by hand: as many as this are more than the processors are reserved for.
    spec = {"image": "tiny", "cpus": 1, "memory": f"{MEMORY}Mi", "nodeName": node}
    items = [{"apiVersion": "nuee.dev/v1", "kind": "VirtualMachine", "metadata": {"name": f"many{index}"}, "spec": spec} for index in range(count)]
    begun = time.monotonic()
    nuee.kubectl("apply", "-f", "-", text="".join(f"---\n{json.dumps(item)}\n" for item in items))
    machines = lambda: json.loads(nuee.kubectl("get", "vm", "-o", "json"))["items"]
    running = lambda: sum(machine.get("status", {}).get("phase") == "Running" for machine in machines())
    until("all guests run", lambda: running() == count, 900)
    run = time.monotonic() - begun
    logs = [nuee.data / "guests" / machine["metadata"]["uid"] / "console.log" for machine in machines()]
    until("all guests are up", lambda: all(map(says_ready, logs)), 1800)
    booted = time.monotonic() - begun
    pids = [machine["status"]["pid"] for machine in machines()]
    shares = [pss_mib(pid) for pid in pids]
    ours = (resident_mib(nuee.pid()) - before) / count
    nuee.kubectl("delete", "vm", "--all", "--timeout=600s")
    return run, booted, sum(shares) / count, ours


def clone(root):
    """The median of clones of a 1 GiB template to a disk that boots, in this machine's file system."""
    command = ["cargo", "run", "--quiet", "--release", "-p", "hypervisor", "--example", "bench-clone"]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, cwd=root).stdout)


def boots(nuee, guest, directory, runs):
    """Prints the rows of starts, in turns."""
    boot_nuee(nuee, "warm")
    ways = {"ours": lambda index: boot_nuee(nuee, index), "bare": lambda index: boot_bare(guest, directory, index),
            "same": lambda index: boot_bare(guest, directory, index, SAME_DEVICES)}
    found = {name: [] for name in ways}
    for index in range(runs):
        for name, way in ways.items():
            found[name].append(way(index))
    median = {name: [statistics.median(times) * 1000 for times in zip(*found[name])] for name in ways}
    for index, what in enumerate(["guest userland", "a configured guest"]):
        ours = median["ours"][index]
        for peer, note, bar in (("bare", "", "at most 60 ms more: "), ("same", ", QEMU with the same devices and chipset", "")):
            theirs = median[peer][index]
            bar = bar if index == 0 else ""
            print(f"| request to {what}{note} | {ours:.0f} ms | {theirs:.0f} ms | {bar}{ours - theirs:+.0f} ms |")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nuee", required=True)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--guests", type=int, default=50, help="how many are started at once; 0 leaves it out")
    parser.add_argument("--only", choices=["boot", "memory", "clone", "balloon", "migration", "many"], action="append", default=[])
    arguments = parser.parse_args()
    wanted = lambda name: not arguments.only or name in arguments.only
    root = pathlib.Path(__file__).resolve().parent.parent
    program = pathlib.Path(arguments.nuee).resolve()
    with tempfile.TemporaryDirectory(prefix="bench-vm-") as directory, contextlib.ExitStack() as ends:
        directory, space = pathlib.Path(directory), Space()
        nuee = Nuee(program, space, directory / "data").up()
        ends.callback(space.close)
        ends.callback(nuee.run, "down", "--all")
        guest = max(pathlib.Path("/var/cache/nuee").glob("test-guest-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]))
        print("| measure | nuee | bare QEMU | bar |\n|---|---|---|---|")
        if wanted("boot"):
            boots(nuee, guest, directory, arguments.runs)
        if wanted("memory"):
            print(f"| memory beside QEMU, per machine | {memory_per_machine(nuee):.2f} MiB | 0 | under 2 MiB |")
        if wanted("clone"):
            print(f"| clone of a 1 GiB template | {clone(root):.2f} ms | – | under 50 ms |")
        if wanted("balloon"):
            print(f"| balloon, reclaim | {balloon(nuee):.0f} MiB/s | – | – |")
        if wanted("migration"):
            ours, ours_still, bare, bare_still = migrations(program, guest, directory, arguments.runs)
            print(f"| migration, request to done | {ours:.0f} ms | {bare:.0f} ms | {ours - bare:+.0f} ms |")
            print(f"| migration, the guest stands still | {ours_still:.0f} ms | {bare_still:.0f} ms | at most 20 ms more: {ours_still - bare_still:+.0f} ms |")
        if wanted("many") and arguments.guests > 0:
            run, booted, memory, beside = many(nuee, arguments.guests)
            print(f"| {arguments.guests} guests at once, to running | {run:.1f} s | – | – |")
            print(f"| {arguments.guests} guests at once, to configured | {booted:.1f} s | – | – |")
            print(f"| memory of each of them, QEMU and beside it | {memory:.0f} + {beside:.2f} MiB | – | – |")


if __name__ == "__main__":
    main()
