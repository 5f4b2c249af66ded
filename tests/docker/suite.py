#!/usr/bin/env python3
"""Runs docker-py's own integration suite, from its published source archive, against dockerd and against Nuée, each in namespaces of
its own and with the same seeds, and compares them test by test.

    tests/docker/suite.py --nuee target/debug/nuee              both; fails when a test passes on dockerd and not on Nuée
    tests/docker/suite.py --nuee target/debug/nuee --record     the same, and writes down what passes on dockerd
    tests/docker/suite.py --nuee target/debug/nuee --alone      Nuée alone, held against what was written down
    tests/docker/suite.py --nuee target/debug/nuee --bounded    the same with the files of BOUNDED only

Tests of suite_expected.txt (a test, a class or a file, then the reason) are known not to pass; where the reason begins with
"sometimes", they may.
"""
import argparse
import shutil
import subprocess
import sys
import tarfile
import venv
import xml.etree.ElementTree as xml

import peers

# The last release whose source archive holds the tests, and a `requests` of its time.
VERSION = "7.0.0"
PACKAGES = ["requests==2.31.0", "urllib3<2.3", "pytest==7.4.2", "pytest-timeout==2.1.0", "paramiko<4", "websocket-client", "packaging"]
CACHE = peers.HERE.parent.parent / "target" / f"docker-py-{VERSION}"
EXPECTED = peers.HERE / "suite_expected.txt"
# Tests that pass on dockerd, one a line.
RECORD = peers.HERE / "suite_recorded.txt"
# Images that tests take for granted, or find because an earlier one fetched them.
IMAGES = ["alpine:3.10", "alpine:latest", "busybox:latest"]
# Longest that one test may take. Units: seconds.
TEST_SECONDS = 90
# What `make test` runs: fast, and together they touch each group of the API.
BOUNDED = ["api_exec_test.py", "api_volume_test.py", "api_network_test.py", "errors_test.py", "models_volumes_test.py",
           "models_networks_test.py", "api_healthcheck_test.py", "models_images_test.py", "regression_test.py"]


def prepare():
    """Fetches the source archive and makes an environment for it; once."""
    python = CACHE / "venv/bin/python"
    if not (CACHE / "ready").exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        venv.create(CACHE / "venv", with_pip=True, clear=True)
        pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", *PACKAGES], check=True)
        subprocess.run([*pip, "install", "--no-deps", f"docker=={VERSION}"], check=True)
        subprocess.run([*pip, "download", "--no-binary", ":all:", "--no-deps", "--dest", CACHE, f"docker=={VERSION}"], check=True)
        with tarfile.open(CACHE / f"docker-{VERSION}.tar.gz") as archive:
            archive.extractall(CACHE, filter="data") if hasattr(tarfile, "data_filter") else archive.extractall(CACHE)
        (CACHE / "ready").touch()
    return python, CACHE / f"docker-{VERSION}"


def run(peer, files, select):
    """Runs tests against a started peer; returns name -> (outcome, message)."""
    python, source = prepare()
    for image in IMAGES:
        peer.docker("pull", "-q", image)
    report = peer.directory / "report.xml"
    # The tests of contexts leave theirs in the working directory.
    shutil.rmtree(source / "contexts", ignore_errors=True)
    words = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--timeout={TEST_SECONDS}", f"--junitxml={report}"]
    words += [f"tests/integration/{name}" for name in files] or ["tests/integration"]
    if select:
        words += ["-k", select]
    # The tests import the installed package, not the one beside them: the archive's lacks its generated version file.
    command = ["env", f"--chdir={source}", "PYTHONDONTWRITEBYTECODE=1", *map(str, words)]
    with open(peer.directory / "tests.log", "wb") as log:
        peer.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    outcomes = {}
    for case in xml.parse(report).getroot().iter("testcase"):
        problem = next((kind for kind in ("failure", "error", "skipped") if case.find(kind) is not None), None)
        message = case.find(problem).get("message", "") if problem else ""
        name = f"{case.get('classname').removeprefix('tests.integration.')}::{case.get('name')}"
        # A test with an error in its tear-down is there twice; the worse counts.
        if outcomes.get(name, ("passed", ""))[0] in ("passed", "skipped"):
            outcomes[name] = (problem or "passed", " ".join(message.split())[:300])
    return outcomes


def expected():
    """The tests that are known not to pass, with the reason."""
    lines = [line for line in EXPECTED.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split(maxsplit=1) for line in lines)


def known(name, table):
    """A line may name a test, a class or a file."""
    return any(name == key or name.startswith((key + "::", key + ".")) for key in table)


def count(outcomes):
    totals = {}
    for outcome, _ in outcomes.values():
        totals[outcome] = totals.get(outcome, 0) + 1
    return ", ".join(f"{number} {outcome}" for outcome, number in sorted(totals.items()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nuee", required=True, help="the program")
    parser.add_argument("--alone", action="store_true", help="Nuée alone")
    parser.add_argument("--bounded", action="store_true", help="Nuée alone, a part of the files")
    parser.add_argument("--record", action="store_true", help="write down what passes on dockerd")
    parser.add_argument("--keep", action="store_true", help="keep the engines' directories, logs among them")
    parser.add_argument("-k", dest="select", help="pytest's -k")
    parser.add_argument("files", nargs="*", help="files of the suite; default all")
    options = parser.parse_args()
    files = options.files or (BOUNDED if options.bounded else [])
    prepare()
    if options.alone or options.bounded:
        reference = {name: ("passed", "") for name in RECORD.read_text().split("\n") if name and not name.startswith("#")}
    else:
        reference = judge(peers.Dockerd(options.keep), files, options)
        if options.record:
            passed = sorted(name for name, (outcome, _) in reference.items() if outcome == "passed")
            RECORD.write_text("\n".join(["# Tests of docker-py's suite that pass on dockerd. Written by suite.py --record.", *passed]) + "\n")
    outcomes = judge(peers.Nuee(options.nuee, options.keep), files, options)
    table, bad = expected(), 0
    for name, (outcome, message) in sorted(outcomes.items()):
        wanted = reference.get(name, ("absent", ""))[0] == "passed"
        if outcome in ("failure", "error") and wanted and not known(name, table):
            print(f"FAILED {name}: {message}")
            bad += 1
        if outcome == "passed" and not table.get(name, "sometimes").startswith("sometimes"):
            print(f"{name} passes: take it out of suite_expected.txt")
            bad += 1
    if not outcomes:
        sys.exit("no test ran")
    passes = sum(outcome == "passed" for outcome, _ in outcomes.values())
    print(f"{passes} pass on Nuée; of those that pass on dockerd, {bad} to mend" if bad else
          f"{passes} pass on Nuée; every test that passes on dockerd is among them, but for those of suite_expected.txt")
    sys.exit(bool(bad))


def judge(peer, files, options):
    """Starts an engine and runs the tests against it."""
    with peer:
        if options.keep:
            print(f"{peer.name}: {peer.directory}", flush=True)
        outcomes = run(peer, files, options.select)
    print(f"{peer.name}: {count(outcomes)}", flush=True)
    return outcomes


if __name__ == "__main__":
    main()
