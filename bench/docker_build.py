#!/usr/bin/env python3
"""Compares Nuée with dockerd, side by side in one run: a ten-step build cold and cached, by the classic builder; on Nuée also by
BuildKit's protocol; and Compose up and down of a project with three services.

Prints one table. The runs alternate, so that a machine that drifts drifts for both. Needs `contrib/packages.sh test`.
"""
import argparse
import json
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

STEPS = "FROM busybox\nENV A=b\nWORKDIR /src\nCOPY . .\n" + "".join(f"RUN echo {i} > /src/{i}\n" for i in range(1, 7)) + "CMD [\"sh\"]\n"
COMPOSE = """services:
  one: {image: busybox, command: [sleep, "600"], init: true}
  two: {image: busybox, command: [sleep, "600"], init: true, depends_on: [one]}
  three: {image: busybox, command: [sleep, "600"], init: true, depends_on: [one]}
"""
BARS = {"build, ten steps, cold": 0.33, "build, ten steps, cached": 0.33}


def compose(engine, program, project, *words):
    env = dict(engine.env, DOCKER_HOST=f"unix://{engine.socket}", COMPOSE_MENU="false")
    env.pop("DOCKER_BUILDKIT", None)
    # Entering a mount namespace loses the working directory, so `env` goes there inside it.
    done = subprocess.run(engine.space.command("env", f"--chdir={project}", program, *words), env=env,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{engine.name}: compose {' '.join(words)} failed:\n{done.stdout}")


def timed(work):
    started = time.monotonic()
    work()
    return time.monotonic() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nuee", default="target/release/nuee")
    parser.add_argument("--compose", default="target/compose/docker-compose-2")
    parser.add_argument("--runs", type=int, default=7)
    arguments = parser.parse_args()
    compose_program = os.path.abspath(arguments.compose)
    work = pathlib.Path(tempfile.mkdtemp(prefix="nuee-bench-"))
    figures = {}

    def note(row, engine, seconds):
        figures.setdefault(row, {}).setdefault(engine.name, []).append(seconds)

    try:
        with both(os.path.abspath(arguments.nuee), work) as engines:
            context, project = work / "context", work / "project"
            context.mkdir()
            project.mkdir()
            shutil.copy("/bin/busybox", context / "busybox")
            (context / "Dockerfile").write_text(BUSYBOX)
            for engine in engines:
                engine.docker("build", "--quiet", "--tag", "busybox", context)
            (context / "busybox").unlink()
            (context / "Dockerfile").write_text(STEPS)
            (project / "compose.yaml").write_text(COMPOSE)
            (project / "Dockerfile").write_text(STEPS)
            (project / "build.yaml").write_text("services: {app: {image: app, build: .}}\n")
            for turn in range(arguments.runs):
                for engine in engines:
                    note("build, ten steps, cold", engine,
                         timed(lambda: engine.docker("build", "--no-cache", "--quiet", "--tag", "app", context)))
                    note("build, ten steps, cached", engine,
                         timed(lambda: engine.docker("build", "--quiet", "--tag", "app", context)))
                    note("compose up of three services", engine,
                         timed(lambda: compose(engine, compose_program, project, "up", "-d")))
                    note("compose down", engine, timed(lambda: compose(engine, compose_program, project, "down", "-t", "1")))
                    if engine.name == "nuee":
                        # dockerd 20.10's BuildKit is too old for this client.
                        build = ("-f", "build.yaml", "build")
                        note("compose build over BuildKit, cold", engine,
                             timed(lambda: compose(engine, compose_program, project, *build, "--no-cache")))
                        note("compose build over BuildKit, cached", engine,
                             timed(lambda: compose(engine, compose_program, project, *build)))
            print("| measure | nuee | dockerd | ratio | bar |\n|---|---|---|---|---|")
            for row, taken in figures.items():
                ours = statistics.median(taken["nuee"]) * 1000
                if "dockerd" not in taken:
                    print(f"| {row} | {ours:.0f} ms | – | – | – |")
                    continue
                theirs = statistics.median(taken["dockerd"]) * 1000
                print(f"| {row} | {ours:.0f} ms | {theirs:.0f} ms | {ours / theirs:.2f} | {BARS.get(row, '–')} |")
            version = engines[1].docker("version", "--format", "{{json .Server.Version}}").stdout.strip()
            print(f"\ndockerd {json.loads(version)}, {arguments.runs} runs each, medians")
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
