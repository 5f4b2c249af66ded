#!/usr/bin/env python3
"""Compares Nuée with dockerd, side by side in one run: `docker run --rm busybox true`, `docker exec`, idle memory, time to ready.

Each engine runs in network and mount namespaces of its own. The runs alternate, so that a machine that drifts drifts for both.
Processor time is that of all processes of the machine (from /proc/stat), so let nothing else run meanwhile.
"""
import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import tempfile
import time

DOCKERFILE = """FROM scratch
COPY busybox /bin/busybox
RUN ["/bin/busybox", "--install", "-s", "/bin"]
ENV PATH=/bin
CMD ["sh"]
"""


class Space:
    """Network and mount namespaces, held open by a process."""

    def __init__(self):
        self.holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", "ip link set lo up && echo up && exec cat"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.holder.stdout.readline().strip() == "up"

    def command(self, *words):
        return ["nsenter", "--net", "--mount", "--target", str(self.holder.pid), "--", *map(str, words)]

    def close(self):
        self.holder.stdin.close()
        self.holder.wait()


class Engine:
    """One engine with its socket."""

    def __init__(self, name, socket, space):
        self.name, self.socket, self.space = name, socket, space
        self.env = dict(os.environ, DOCKER_BUILDKIT="0", DOCKER_CONFIG=tempfile.mkdtemp(prefix="bench-config-"))

    def docker(self, *words, check=True):
        return subprocess.run(self.space.command("docker", "--host", f"unix://{self.socket}", *words), check=check, env=self.env,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def busy_seconds():
    """Processor seconds of the whole machine that were not idle."""
    fields = [int(word) for word in pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    return (sum(fields[:8]) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def resident_mib(pids):
    """Resident and proportional memory of some processes."""
    rss = pss = 0
    for pid in pids:
        try:
            for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Rss:"):
                    rss += int(line.split()[1])
                if line.startswith("Pss:"):
                    pss += int(line.split()[1])
        except OSError:
            pass
    return rss / 1024, pss / 1024


def descendants(text):
    """Processes whose command line holds this text."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if text in line and "bench/docker_run.py" not in line and "nsenter" not in line:
                found.append(int(entry.name))
    return found


def measure(engines, runs, words, prepare=None):
    """Median wall and processor seconds of a docker command on each engine, the engines taking turns."""
    figures = {engine.name: ([], []) for engine in engines}
    for turn in range(runs + 1):
        for engine in engines:
            busy, started = busy_seconds(), time.monotonic()
            engine.docker(*words)
            wall = time.monotonic() - started
            time.sleep(0.05)
            if turn:
                figures[engine.name][0].append(wall)
                figures[engine.name][1].append(busy_seconds() - busy)
    return {name: (statistics.median(walls), statistics.mean(cpus)) for name, (walls, cpus) in figures.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nuee", default="target/release/nuee")
    parser.add_argument("--runs", type=int, default=20)
    arguments = parser.parse_args()
    nuee_program = os.path.abspath(arguments.nuee)
    work = pathlib.Path(tempfile.mkdtemp(prefix="nuee-bench-"))
    spaces, daemon = [], None
    try:
        space = Space()
        spaces.append(space)
        data = work / "nuee"
        started = time.monotonic()
        subprocess.run(space.command(nuee_program, "up", "--detach", "--data-dir", data), check=True, stdout=subprocess.DEVNULL)
        ready = {"nuee": time.monotonic() - started}
        nuee = Engine("nuee", data / "docker.sock", space)

        space = Space()
        spaces.append(space)
        root = work / "dockerd"
        root.mkdir()
        started = time.monotonic()
        daemon = subprocess.Popen(
            space.command("dockerd", "--data-root", root / "data", "--exec-root", root / "exec", "--pidfile", root / "pid",
                          "--host", f"unix://{root}/docker.sock", "--storage-driver", "overlay2"),
            stdout=open(root / "log", "w"), stderr=subprocess.STDOUT)
        dockerd = Engine("dockerd", root / "docker.sock", space)
        while dockerd.docker("version", check=False).returncode:
            time.sleep(0.02)
        ready["dockerd"] = time.monotonic() - started
        engines = [nuee, dockerd]

        time.sleep(3)
        memory = {engine.name: resident_mib(descendants(str(work / engine.name))) for engine in engines}
        context = work / "context"
        context.mkdir()
        shutil.copy("/bin/busybox", context / "busybox")
        (context / "Dockerfile").write_text(DOCKERFILE)
        for engine in engines:
            engine.docker("build", "--quiet", "--tag", "busybox", context)

        rows = {"docker run --rm busybox true": measure(engines, arguments.runs, ["run", "--rm", "busybox", "true"])}
        for engine in engines:
            engine.docker("run", "--detach", "--name", "sleeper", "busybox", "sleep", "600")
        rows["docker exec sleeper true"] = measure(engines, arguments.runs, ["exec", "sleeper", "true"])
        print("| measure | nuee | dockerd | ratio |\n|---|---|---|---|")
        for name, row in rows.items():
            for index, what in enumerate(["wall", "CPU of all processes"]):
                ours, theirs = row["nuee"][index] * 1000, row["dockerd"][index] * 1000
                print(f"| `{name}`, {what} | {ours:.0f} ms | {theirs:.0f} ms | {ours / theirs:.2f} |")
        for index, what in enumerate(["RSS", "PSS"]):
            ours, theirs = memory["nuee"][index], memory["dockerd"][index]
            print(f"| idle memory of all processes, {what} | {ours:.0f} MiB | {theirs:.0f} MiB | {ours / max(theirs, 1):.2f} |")
        ours, theirs = ready["nuee"] * 1000, ready["dockerd"] * 1000
        print(f"| start to ready, empty data directory | {ours:.0f} ms | {theirs:.0f} ms | {ours / theirs:.2f} |")
        version = dockerd.docker("version", "--format", "{{json .Server.Version}}").stdout.strip()
        print(f"\ndockerd {json.loads(version)}, {arguments.runs} runs each, medians (CPU: means)")
        for engine in engines:
            engine.docker("rm", "--force", "sleeper", check=False)
    finally:
        if spaces:
            subprocess.run(spaces[0].command(nuee_program, "down", "--all", "--data-dir", work / "nuee"), check=False)
        if daemon:
            daemon.terminate()
            try:
                pid = int((work / "dockerd" / "pid").read_text())
                os.kill(pid, 15)
            except (OSError, ValueError):
                pass
            daemon.wait()
        for space in spaces:
            space.close()
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
