#!/usr/bin/env python3
"""Compares Nuée with dockerd, side by side in one run, and with the floor below both: `python3 bench/docker --nuee PROGRAM`.

Each engine runs in network and mount namespaces of its own. Runs alternate, so that a machine that drifts drifts for both.
Processor time is that of all processes of the machine (from /proc/stat), so let nothing else run meanwhile.
"""
import argparse
import concurrent.futures
import itertools
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from engines import BUSYBOX, Dockerd, Nuee  # noqa: E402  (the directory is run as a program)

HERE = pathlib.Path(__file__).resolve().parent
RESPONDER = "FROM scratch\nCOPY responder /responder\nEXPOSE 80\nCMD [\"/responder\"]\n"
# How many clients at a time start the crowd of containers; the last crowd stays for what follows.
CLIENTS = (1, 8)
# After what time an engine has done what follows a start. Units: seconds.
SETTLED = 15
# Times at which idle memory is looked at, and how far apart: what an engine does by itself each minute is among it. Units: seconds.
LOOKS, BETWEEN = 14, 5
PORT = 8080
# For each run of a container, how many of an exec.
EXECS = 5
# How often each way to a server is measured.
TURNS = 24


def busy_seconds():
    """Processor seconds of the whole machine that were not idle."""
    fields = [int(word) for word in pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    return (sum(fields[:8]) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def client_seconds():
    """Processor seconds of this process, which starts the clients, and of those that it waited for: the clients."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def alternate(actions, runs):
    """Milliseconds of each action: median wall, mean processor time, and the same without the client's; the actions take turns, and
    the first turn is a warm-up."""
    found = {name: ([], [], []) for name in actions}
    for turn in range(runs + 1):
        for name, action in actions.items():
            busy, client, started = busy_seconds(), client_seconds(), time.monotonic()
            action()
            wall, client = time.monotonic() - started, client_seconds() - client
            time.sleep(0.05)
            busy = busy_seconds() - busy
            if turn:
                for list_, seconds in zip(found[name], (wall, busy, busy - client)):
                    list_.append(seconds * 1000)
    return {name: (statistics.median(walls), statistics.mean(all_), statistics.mean(engine))
            for name, (walls, all_, engine) in found.items()}


class Table:
    def __init__(self):
        self.rows = []

    def row(self, measure, unit, ours, theirs, bar, floor=None, digits=0):
        ratio = f"{ours / theirs:.2f}" if theirs else "–"
        text = [f"{value:.{digits}f} {unit}" if value is not None else "–" for value in (ours, theirs, floor)]
        self.rows.append(f"| {measure} | {text[0]} | {text[1]} | {ratio} | {bar} | {text[2]} |")
        print(self.rows[-1], flush=True)

    @staticmethod
    def head():
        print("| measure | nuee | dockerd | ratio | bar | floor |\n|---|---|---|---|---|---|", flush=True)


def build_images(engines, work):
    contexts = {"busybox": BUSYBOX, "responder": RESPONDER}
    for name, text in contexts.items():
        (work / name).mkdir()
        (work / name / "Dockerfile").write_text(text)
    shutil.copy("/bin/busybox", work / "busybox" / "busybox")
    subprocess.run(["rustc", "-O", "-C", "target-feature=+crt-static", "-o", work / "responder" / "responder",
                    HERE / "responder.rs"], check=True)
    for engine in engines:
        for name in contexts:
            engine.docker("build", "--quiet", "--tag", name, work / name)


def bare_bundle(work):
    """A bundle for the OCI runtime alone: the floor of a run. Returns the action."""
    bundle = work / "bundle"
    (bundle / "rootfs" / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", bundle / "rootfs" / "bin" / "true")
    for name in ("proc", "dev", "sys"):
        (bundle / "rootfs" / name).mkdir()
    subprocess.run(["crun", "spec"], cwd=bundle, check=True)
    spec = json.loads((bundle / "config.json").read_text())
    spec["process"].update(terminal=False, args=["/bin/true"])
    spec["linux"].pop("resources", None)
    (bundle / "config.json").write_text(json.dumps(spec))
    # As ours does: crun refuses hybrid control groups, so it is run where it does not see them.
    line = "umount -l /sys/fs/cgroup/unified 2>/dev/null; exec crun --cgroup-manager=disabled run bench-floor"
    return lambda: subprocess.run(["unshare", "--mount", "sh", "-c", line], cwd=bundle, check=True,
                                  stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def single(table, engines, work, runs):
    """One container, one exec, and the client alone."""
    actions = {engine.name: (lambda e=engine: e.docker("run", "--rm", "busybox", "true")) for engine in engines}
    actions["floor"] = bare_bundle(work)
    found = alternate(actions, runs)
    # The floor has no client: all of it is the runtime's.
    floor = (*found["floor"][:2], found["floor"][1])
    for index, (what, bar) in enumerate([("wall", "0.20"), ("CPU of all processes", "–"), ("CPU without the client", "0.125")]):
        table.row(f"`docker run --rm busybox true`, {what}", "ms", found["nuee"][index], found["dockerd"][index], bar, floor[index])
    names = itertools.count()
    actions = {engine.name: (lambda e=engine: e.docker("run", "--detach", "--label", "single", "--name", f"single-{next(names)}",
                                                       "busybox", "sleep", "6000")) for engine in engines}
    found = alternate(actions, runs)
    for index, (what, bar) in enumerate([("wall", "0.20"), ("CPU of all processes", "–"), ("CPU without the client", "0.125")]):
        table.row(f"`docker run -d busybox sleep`, {what}", "ms", found["nuee"][index], found["dockerd"][index], bar)
    for engine in engines:
        engine.docker("rm", "--force", *engine.docker("ps", "--quiet", "--filter", "label=single").stdout.split())
        engine.docker("run", "--detach", "--name", "sleeper", "busybox", "sleep", "6000")
    actions = {engine.name: (lambda e=engine: e.docker("exec", "sleeper", "true")) for engine in engines}
    actions["floor"] = lambda: engines[0].docker("inspect", "sleeper")
    # Most of it is the client's own time, of which a few runs say little.
    found = alternate(actions, runs * EXECS)
    for index, (what, bar) in enumerate([("wall", "0.33"), ("CPU of all processes", "–"), ("CPU without the client", "–")]):
        table.row(f"`docker exec sleeper true`, {what} (floor: `docker inspect`)", "ms", found["nuee"][index],
                  found["dockerd"][index], bar, found["floor"][index])
    actions = {engine.name: (lambda e=engine: e.exec_over_api("sleeper", ["true"])) for engine in engines}
    found = alternate(actions, runs)
    for index, (what, bar) in enumerate([("wall", "0.33"), ("CPU of all processes", "–")]):
        table.row(f"the same over the API, {what}", "ms", found["nuee"][index], found["dockerd"][index], bar, digits=1)
    for engine in engines:
        engine.docker("rm", "--force", "sleeper")


def requests_per_second(engine, url):
    text = engine.space.run("wrk", "--threads", "1", "--connections", "16", "--duration", "1s", url).stdout
    return float(re.search(r"Requests/sec:\s+([\d.]+)", text).group(1))


def traffic(table, nuee, dockerd):
    """Requests per second through a published port and through a service."""
    for engine in (nuee, dockerd):
        engine.docker("run", "--detach", "--name", "web", "--publish", f"{PORT}:80", "responder")
    gateway = "{{range .NetworkSettings.Networks}}{{.Gateway}}{{end}}"
    hosts = {e.name: e.docker("inspect", "--format", gateway, "web").stdout.strip() for e in (nuee, dockerd)}
    inside = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    address = nuee.docker("inspect", "--format", inside, "web").stdout.strip()
    # A pod that asks for nothing gets the least weight of all; a container of dockerd has 1,024, which is one CPU.
    asks = {"spec": {"containers": [{"name": "web", "image": "responder", "imagePullPolicy": "Never",
                                     "ports": [{"containerPort": 80}], "resources": {"requests": {"cpu": "1"}}}]}}
    nuee.kubectl("run", "web", "--image", "responder", "--overrides", json.dumps(asks))
    nuee.kubectl("expose", "pod", "web", "--port", "80", "--selector", "run=web")
    nuee.kubectl("wait", "--for", "condition=Ready", "pod/web", "--timeout", "60s")
    service = nuee.kubectl("get", "service", "web", "--output", "jsonpath={.spec.clusterIP}").stdout
    asked = {
        "published": (nuee, f"http://{hosts['nuee']}:{PORT}/"),
        "theirs": (dockerd, f"http://{hosts['dockerd']}:{PORT}/"),
        "service": (nuee, f"http://{service}/"),
        "floor": (nuee, f"http://{address}/"),
    }
    rates = {name: [] for name in asked}
    for turn in range(TURNS):
        # Back and forth, so that a machine that slows down does so for all alike.
        for name in sorted(asked, reverse=turn % 2 == 1):
            rates[name].append(requests_per_second(*asked[name]))
    median = {name: statistics.median(found) for name, found in rates.items()}
    best, base = median["theirs"], median["floor"]
    table.row("published port (floor: its own address)", "req/s", median["published"], best, "≥ 1", base)
    table.row("service, beside dockerd's published port", "req/s", median["service"], best, "≥ 1", base)
    nuee.kubectl("delete", "pod,service", "web", "--grace-period", "0", "--force", check=False)
    for engine in (nuee, dockerd):
        engine.docker("rm", "--force", "web")


def start_crowd(engine, names, clients):
    """Starts containers from several clients at once. Returns seconds of wall and of processor time without the clients'."""
    busy, client, started = busy_seconds(), client_seconds(), time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        list(pool.map(lambda name: engine.docker("run", "--detach", "--name", name, "busybox", "sleep", "6000"), names))
    wall = time.monotonic() - started
    return wall, busy_seconds() - busy - (client_seconds() - client)


def crowd(table, nuee, dockerd, size):
    """Many containers at once, what each costs in memory, and how fast a killed daemon finds them again."""
    names = [f"crowd-{number}" for number in range(size)]
    each, whole = {}, {}
    for clients in CLIENTS:
        found = {}
        for engine in (nuee, dockerd):
            before = engine.memory_mib()[1]
            found[engine.name] = start_crowd(engine, names, clients)
            if clients == CLIENTS[-1]:
                time.sleep(SETTLED)
                whole[engine.name] = engine.memory_mib()
                each[engine.name] = (whole[engine.name][1] - before) / size
            else:
                engine.docker("rm", "--force", *names)
        for index, (what, bar) in enumerate([(f"{size} × `docker run -d`, {clients} at a time", "0.20"), ("the same, CPU without the clients", "0.125")]):
            table.row(what, "s", found["nuee"][index], found["dockerd"][index], bar, digits=2)
    for index, what in enumerate(["RSS", "PSS"]):
        table.row(f"memory of all processes with {size} containers, {what}", "MiB", whole["nuee"][index], whole["dockerd"][index], "0.33")
    table.row("memory per idle container beyond its own, PSS", "MiB", each["nuee"], each["dockerd"], "0.33", digits=2)
    pids = nuee.docker("inspect", "--format", "{{.State.Pid}}", *names).stdout
    os.kill(nuee.daemon(), signal.SIGKILL)
    started = time.monotonic()
    nuee.start()
    # The first answer of the new daemon: it must know them all.
    listed = nuee.docker("ps", "--format", "{{.Names}} {{.State}}").stdout.splitlines()
    wall = time.monotonic() - started
    assert sorted(listed) == sorted(f"{name} running" for name in names), "not all are known as running"
    assert nuee.docker("inspect", "--format", "{{.State.Pid}}", *names).stdout == pids, "not all were adopted"
    table.row(f"kill -9; from exec to {size} containers running in `docker ps`", "s", wall, None, "1 s", digits=2)
    for engine in (nuee, dockerd):
        engine.docker("rm", "--force", *names)


def idle_memory(engines):
    """Medians, over more than a minute of doing nothing, of RSS and PSS of all processes. Units: MiB."""
    found = {engine.name: [] for engine in engines}
    for _ in range(LOOKS):
        time.sleep(BETWEEN)
        for engine in engines:
            found[engine.name].append(engine.memory_mib())
    return {name: [statistics.median(values) for values in zip(*looks)] for name, looks in found.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nuee", default="target/release/nuee")
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--crowd", type=int, default=100, help="containers at once")
    arguments = parser.parse_args()
    work = pathlib.Path(tempfile.mkdtemp(prefix="nuee-bench-"))
    nuee, dockerd = Nuee(arguments.nuee, work / "nuee"), Dockerd(work / "dockerd")
    try:
        ready = {}
        for engine in (nuee, dockerd):
            started = time.monotonic()
            engine.start()
            ready[engine.name] = (time.monotonic() - started) * 1000
        memory = idle_memory((nuee, dockerd))
        build_images((nuee, dockerd), work)
        table = Table()
        table.head()
        table.row("start to ready, empty data directory", "ms", ready["nuee"], ready["dockerd"], "1 s")
        for index, what in enumerate(["RSS", "PSS"]):
            bar = "0.33" if what == "RSS" else "–"
            table.row(f"idle memory of all processes, {what}", "MiB", memory["nuee"][index], memory["dockerd"][index], bar)
        single(table, (nuee, dockerd), work, arguments.runs)
        traffic(table, nuee, dockerd)
        crowd(table, nuee, dockerd, arguments.crowd)
        version = dockerd.docker("version", "--format", "{{.Server.Version}}").stdout.strip()
        print(f"\ndockerd {version}, {arguments.runs} runs each of the single ones, medians (CPU: means)")
    finally:
        nuee.close()
        dockerd.close()
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
