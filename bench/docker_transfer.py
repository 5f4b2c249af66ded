#!/usr/bin/env python3
"""Compares Nuée with dockerd, side by side in one run: push and pull of an image of 200 MB to and from a registry on the same
machine (Debian's `docker-registry`, one for each), a push of as many bytes of programs, and what a container's output passes through
per second. Processor time is that of all processes of the machine, the registry's too (from /proc/stat): let nothing else run meanwhile.

Prints one table. The runs alternate, so that a machine that drifts drifts for both. Needs `contrib/packages.sh test` and the package
`docker-registry`.
"""
import argparse
import contextlib
import itertools
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "docker"))
from engines import BUSYBOX, both  # noqa: E402  (the directory beside is a program)

REGISTRY = "127.0.0.1:5001"
# Four layers of 50 MB that hardly compress, as programs and libraries hardly do beyond what they are packed with.
LAYERS = 4
LAYER_BYTES = 50_000_000
# Where programs are found that do compress.
PROGRAMS = ["/usr/lib", "/usr/bin"]
# A container's output. Units: bytes.
OUTPUT_BYTES = 200_000_000
LINE = "x" * 99


def registry_of(engine, work):
    """A registry in the engine's network namespace."""
    root = work / f"registry-{engine.name}"
    settings = root.with_suffix(".yml")
    settings.write_text(f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {root}}}}}\n"
                        f"http: {{addr: '{REGISTRY}'}}\n")
    line = engine.space.command("docker-registry", "serve", settings)
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while engine.space.run("curl", "--silent", "--fail", f"http://{REGISTRY}/v2/", check=False).returncode:
        if process.poll() is not None:
            sys.exit(f"{engine.name}: the registry ended with {process.returncode}")
        time.sleep(0.05)
    return process


@contextlib.contextmanager
def engines_of(program, work):
    """Both engines, each with a registry in its namespaces."""
    with both(program, work) as engines, contextlib.ExitStack() as stack:
        for engine in engines:
            registry = registry_of(engine, work)
            stack.callback(registry.wait)
            stack.callback(registry.kill)
        yield engines


def build(engine, work):
    base = work / f"base-{engine.name}"
    base.mkdir()
    (base / "Dockerfile").write_text(BUSYBOX)
    shutil.copy("/bin/busybox", base / "busybox")
    engine.docker("build", "--quiet", "--tag", "busybox", base)


def noise():
    while True:
        yield os.urandom(LAYER_BYTES)


def programs():
    """The bytes of this machine's programs and libraries, cut into layers; from the beginning again when there are too few."""
    files = sorted(path for root in PROGRAMS for path in pathlib.Path(root).rglob("*") if path.is_file() and not path.is_symlink())
    bytes_ = bytearray()
    for path in itertools.cycle(files):
        bytes_ += path.read_bytes()
        while len(bytes_) >= LAYER_BYTES:
            yield bytes(bytes_[:LAYER_BYTES])
            del bytes_[:LAYER_BYTES]


def image_of(engine, work, tag, contents):
    """An image that the registry has no layer of; its name."""
    context = work / f"{engine.name}-{tag}"
    context.mkdir()
    for layer, content in zip(range(LAYERS), contents):
        with open(context / f"layer{layer}", "wb") as file:
            file.write(os.urandom(16) + content[16:])
    copies = "".join(f"COPY layer{layer} /\n" for layer in range(LAYERS))
    (context / "Dockerfile").write_text(f"FROM scratch\n{copies}")
    name = f"{REGISTRY}/big:{tag}"
    engine.docker("build", "--quiet", "--tag", name, context)
    shutil.rmtree(context)
    return name


def timed(action):
    started = time.monotonic()
    action()
    return time.monotonic() - started


def busy_seconds():
    """Processor seconds of the whole machine that were not idle."""
    fields = [int(word) for word in pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    return (sum(fields[:8]) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def measured(found, measure, action):
    busy = busy_seconds()
    found[measure].append(timed(action))
    found[f"{measure}, CPU"].append(busy_seconds() - busy)


def transfers(engine, work, turn, found):
    name = image_of(engine, work, f"noise-{turn}", noise())
    os.sync()
    measured(found, "push of 200 MB", lambda: engine.docker("push", "--quiet", name))
    measured(found, "the same again", lambda: engine.docker("push", "--quiet", name))
    engine.docker("rmi", name)
    os.sync()
    measured(found, "pull of 200 MB", lambda: engine.docker("pull", "--quiet", name))
    engine.docker("rmi", name)
    name = image_of(engine, work, f"programs-{turn}", programs())
    os.sync()
    measured(found, "push of 200 MB of programs", lambda: engine.docker("push", "--quiet", name))
    engine.docker("rmi", name)


def output(engine, found):
    """A container that prints, and the client that reads its log."""
    script = f"yes {LINE} | head -c {OUTPUT_BYTES}"
    engine.docker("create", "--name", "speaks", "--log-opt", "max-size=1g", "busybox", "sh", "-c", script)
    started = time.monotonic()
    engine.docker("start", "speaks")
    engine.docker("wait", "speaks")
    found["200 MB printed by a container, to its log"].append(time.monotonic() - started)

    def read():
        line = engine.space.command("docker", "--host", f"unix://{engine.socket}", "logs", "speaks")
        count = subprocess.run(["wc", "-c"], stdin=subprocess.Popen(line, env=engine.env, stdout=subprocess.PIPE).stdout,
                               check=True, stdout=subprocess.PIPE, text=True).stdout
        assert int(count) == OUTPUT_BYTES, f"{engine.name}: {count} bytes of the log"

    found["`docker logs` of 200 MB"].append(timed(read))
    engine.docker("rm", "--force", "speaks")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nuee", default="target/release/nuee")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    moved = {"push of 200 MB": "0.33", "the same again": "–", "pull of 200 MB": "0.33", "push of 200 MB of programs": "–"}
    bars = {name: bar for measure, given in moved.items() for name, bar in ((measure, given), (f"{measure}, CPU", "–"))}
    bars |= {"200 MB printed by a container, to its log": "≤ 1", "`docker logs` of 200 MB": "≤ 1"}
    work = pathlib.Path(tempfile.mkdtemp(prefix="nuee-bench-"))
    try:
        with engines_of(arguments.nuee, work) as engines:
            found = {engine.name: {measure: [] for measure in bars} for engine in engines}
            for engine in engines:
                build(engine, work)
            for turn in range(arguments.runs):
                for engine in engines:
                    transfers(engine, work, turn, found[engine.name])
                    output(engine, found[engine.name])
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print("| measure | nuee | dockerd | ratio | bar |\n|---|---|---|---|---|")
    for measure, bar in bars.items():
        ours, theirs = (statistics.median(found[name][measure]) for name in ("nuee", "dockerd"))
        print(f"| {measure} | {ours:.2f} s | {theirs:.2f} s | {ours / theirs:.2f} | {bar} |")


if __name__ == "__main__":
    main()
