#!/usr/bin/env python3
"""The differential test: the command lines of command_lines.txt are run against dockerd and against Nuée. Exit codes must be equal, and
output must be after normalising ids, times, addresses and sizes. What dockerd answered is kept in recorded.txt, so that the Nuée side
can be checked where there is no dockerd.

    tests/docker/differential.py --nuee target/debug/nuee --record     both engines; writes recorded.txt
    tests/docker/differential.py --nuee target/debug/nuee              Nuée against the record

differences.txt lists the command lines that may differ, each under its reason; a line that no longer differs is reported.
"""
import argparse
import difflib
import re
import subprocess
import sys

import peers

LINES = peers.HERE / "command_lines.txt"
RECORD = peers.HERE / "recorded.txt"
DIFFERENCES = peers.HERE / "differences.txt"
# Longest that one line may take. Units: seconds.
LINE_SECONDS = 120
# One version of the API on both sides, that of the reference; so that the client asks both the same.
API_VERSION = "1.41"
SEEDS = ["busybox:latest", "alpine:latest", "hello-world:latest"]

# `docker build --squash` is offered with experimental features alone, by both.
EXPERIMENTAL = "dockerExperimental: true\n"


class Experimental(peers.Dockerd):
    def start(self):
        super().start("--experimental")


RULES = [(re.compile(pattern), into) for pattern, into in [
    (r"\x1b\[[0-9;?]*[A-Za-z]|\r", ""),
    (r"\bsha256:[0-9a-f]{12,64}\b", "sha256:<id>"),
    (r"\b[0-9a-f]{64}\b", "<id>"),
    (r"\b(?=[0-9a-f]*[0-9])(?=[0-9a-f]*[a-f])[0-9a-f]{12}\b", "<id>"),
    # An id may have digits alone; what a build says is one for sure.
    (r"(--->|built|in|container) [0-9a-f]{12}$", r"\1 <id>"),
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?( ?(Z|[+-]\d\d:?\d\d)( UTC)?)?", "<time>"),
    (r"(?i)\b(about )?(an? |less than an? |\d+ )(second|minute|hour|day|week|month|year)s?( ago)?\b", "<ago>"),
    (r"\b\d+(\.\d+)? ?[kMGT]?i?B\b", "<size>"),
    (r'("Size(RootFs|Rw)?"|"SandboxKey"|"Pid"|"IPPrefixLen"):("[^"]*"|\d+)', r"\1:<any>"),
    (r"\b(02:42|[0-9a-f]{2}:[0-9a-f]{2})(:[0-9a-f]{2}){4}\b", "<mac>"),
    (r"\b(172\.(1[6-9]|2\d|3[01])|10\.8[89]|192\.168)\.\d+\.\d+(/\d+)?\b", "<address>"),
    (r"(0\.0\.0\.0|\[::\]|:::?|127\.0\.0\.1):(3[2-9]|[456])\d{3}\b", r"\1:<port>"),
    (r"to \d+\.00, as there are only \d+ CPUs", "to <count>, as there are only <count> CPUs"),
    (r"available: [0-9,-]+", "available: <list>"),
    (r"[ \t]{2,}", "  "),
    (r"[ \t]+$", ""),
]]


def normalise(text, directory):
    text = text.replace(str(directory), "<directory>")
    lines = []
    for line in text.splitlines():
        for pattern, into in RULES:
            line = pattern.sub(into, line)
        lines.append(line)
    return lines


class Answer:
    """What one command line answered: exit code, then lines with '|' for output and '!' for errors."""

    def __init__(self, status, lines):
        self.status, self.lines = status, lines

    def __eq__(self, other):
        return (self.status, self.lines) == (other.status, other.lines)

    def text(self):
        return [f"exit {self.status}", *self.lines]


def sections():
    """Name -> command lines."""
    found = {}
    for line in LINES.read_text().splitlines():
        if match := re.fullmatch(r"\[(.*)\]", line):
            found[match[1]] = current = []
        elif line and not line.startswith("#"):
            current.append(line)
    return found


def keyed(lines):
    """Each compared line, with a number behind those that come again."""
    seen = {}
    for line in lines:
        seen[line] = seen.get(line, 0) + 1
        yield line, line if seen[line] == 1 else f"{line} #{seen[line]}"


def shell(peer, line):
    files = peer.directory / "files"
    environment = dict(peer.environment, FILES=str(files), DOCKER_API_VERSION=API_VERSION)
    try:
        done = subprocess.run(peer.space.command("bash", "-c", line.removeprefix("~")), env=environment, stdin=subprocess.DEVNULL,
                              capture_output=True, timeout=LINE_SECONDS)
    except subprocess.TimeoutExpired:
        return Answer("none", [f"! not done within {LINE_SECONDS} s"])
    decode = lambda data: normalise(data.decode(errors="replace"), peer.directory)
    return Answer(done.returncode, [f"| {x}" for x in decode(done.stdout)] + [f"! {x}" for x in decode(done.stderr)])


def clean(peer):
    shell(peer, 'for id in $(docker ps -aq); do docker rm -fv $id; done; docker network prune -f; docker volume rm -f $(docker volume ls -q);'
                ' docker images --format "{{.Repository}}:{{.Tag}}" | grep -v -E "^(' + "|".join(SEEDS) + ')$" | xargs -r docker rmi -f;'
                ' docker image prune -f; rm -rf $FILES; mkdir -p $FILES')


def run(peer, wanted):
    """Runs the sections that are wanted; gives line -> answer."""
    answers = {}
    for image in SEEDS:
        peer.docker("pull", "-q", image)
    for name, lines in sections().items():
        if wanted and not any(word in name for word in wanted):
            continue
        clean(peer)
        for line, key in keyed(lines):
            answer = shell(peer, line)
            if not line.startswith("~"):
                answers[f"[{name}] {key}"] = answer
    clean(peer)
    return answers


def write(answers):
    parts = ["# What dockerd answered to command_lines.txt, normalised. Written by differential.py --record."]
    for key, answer in answers.items():
        parts += ["", f"$ {key}", *answer.text()]
    RECORD.write_text("\n".join(parts) + "\n")


def read():
    answers = {}
    for block in re.split(r"^\$ ", RECORD.read_text(), flags=re.M)[1:]:
        key, status, *lines = block.rstrip("\n").split("\n")
        status = status.removeprefix("exit ")
        answers[key] = Answer(int(status) if status != "none" else status, lines)
    return answers


def allowed():
    """Command lines that may differ -> reason."""
    found, reason = {}, ""
    for line in DIFFERENCES.read_text().splitlines():
        if line.startswith("# "):
            reason = line[2:]
        elif line:
            found[line] = reason
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nuee", required=True, help="the program")
    parser.add_argument("--record", action="store_true", help="run dockerd too, and write its answers down")
    parser.add_argument("--only", choices=["nuee", "dockerd"], default=None)
    parser.add_argument("--keep", action="store_true", help="keep the engines' directories, logs among them")
    parser.add_argument("sections", nargs="*", help="parts of section names; default all")
    options = parser.parse_args()
    recorded = read() if RECORD.exists() else {}
    if options.record:
        with Experimental(options.keep) as dockerd:
            recorded.update(run(dockerd, options.sections))
        order = [f"[{name}] {key}" for name, lines in sections().items() for line, key in keyed(lines)]
        recorded = {key: recorded[key] for key in order if key in recorded}
        write(recorded)
        if options.only == "dockerd":
            return
    with peers.Nuee(options.nuee, options.keep, EXPERIMENTAL) as nuee:
        answers = run(nuee, options.sections)
    known, bad, used = allowed(), 0, set()
    for key, answer in answers.items():
        if key not in recorded:
            print(f"\n$ {key}\n  is not in the record; run with --record")
            bad += 1
        elif answer != recorded[key]:
            used.add(key)
            if key in known and (answer.status == recorded[key].status or known[key].startswith("Exit code: ")):
                continue
            bad += 1
            print(f"\n$ {key}")
            for line in difflib.unified_diff(recorded[key].text(), answer.text(), "dockerd", "nuee", n=1, lineterm=""):
                if not line.startswith(("---", "+++", "@@")):
                    print(f"  {line[:300]}")
    for key in known:
        if key in answers and key not in used:
            print(f"\n$ {key}\n  no longer differs: take it out of differences.txt")
            bad += 1
    print(f"\n{len(answers)} command lines, {len(used)} differ, {len(used & set(known))} of them for a reason in differences.txt")
    if bad or not answers:
        sys.exit(f"{bad} to mend")


if __name__ == "__main__":
    main()
