#!/usr/bin/env python3
"""What a CI runner does, through docker-py: check a project out into a fresh container, compile it, run its unit tests, copy the JUnit
report out, and judge by it. Once with a project that is fine, and once with one whose test fails.

    tests/docker/ci_job.py --nuee target/debug/nuee
"""
import argparse
import io
import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as xml

import peers
import suite

MODULES = {
    "src/add.sh": "add() { echo $(($1 + $2)); }\n",
    "src/greet.sh": 'greet() { echo "hello $1"; }\n',
    "compile.sh": """set -e
mkdir -p out
for module in src/*.sh; do sh -n "$module"; cat "$module" >> out/library.sh; done
echo compiled $(ls src | wc -l) modules
""",
    "test.sh": """. out/library.sh
report=out/report.xml
failures=0 cases=''
check() {
    if [ "$2" = "$3" ]; then cases="$cases<testcase classname='library' name='$1'/>"
    else failures=$((failures + 1)); cases="$cases<testcase classname='library' name='$1'><failure>$2 is not $3</failure></testcase>"; fi
}
check adds "$(add 2 3)" EXPECTED
check greets "$(greet world)" "hello world"
echo "<testsuite name='library' tests='2' failures='$failures'>$cases</testsuite>" > $report
[ $failures = 0 ]
""",
}


def checkout(expected):
    """The project as an archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, text in MODULES.items():
            data = text.replace("EXPECTED", expected).encode()
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o644
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def job(client, expected):
    """Runs the job; exit code of the tests, their number and the failed ones by the report."""
    container = client.containers.run("busybox", ["sleep", "600"], detach=True, working_dir="/work", network_mode="none", mem_limit="64m",
                                      labels={"ci": "job"}, environment={"CI": "true"}, auto_remove=False)
    try:
        assert container.put_archive("/work", checkout(expected))
        code, output = container.exec_run(["sh", "compile.sh"], workdir="/work")
        assert (code, output) == (0, b"compiled 2 modules\n"), (code, output)
        code, output = container.exec_run(["sh", "test.sh"], workdir="/work", environment={"RUN": "1"}, demux=True)
        pieces, facts = container.get_archive("/work/out/report.xml")
        assert facts["name"] == "report.xml", facts
        with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as archive:
            report = xml.parse(archive.extractfile("report.xml")).getroot()
        failed = [case.get("name") for case in report.iter("testcase") if case.find("failure") is not None]
        return code, int(report.get("tests")), failed
    finally:
        container.remove(force=True, v=True)


def inside():
    import docker
    client = docker.from_env()
    assert job(client, "5") == (0, 2, []), "the project that is fine"
    assert job(client, "6") == (1, 2, ["adds"]), "the project with a failing test"
    assert client.containers.list(all=True, filters={"label": "ci=job"}) == []
    print("the job compiled, tested and reported")


def main():
    if os.environ.get("CI_JOB_INSIDE"):
        return inside()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nuee", required=True, help="the program")
    python, _ = suite.prepare()
    with peers.Nuee(parser.parse_args().nuee) as nuee:
        nuee.docker("pull", "-q", "busybox")
        done = nuee.run(["env", "CI_JOB_INSIDE=1", str(python), __file__], stdin=subprocess.DEVNULL)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
