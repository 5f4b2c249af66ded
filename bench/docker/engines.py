"""The two engines, each in namespaces of its own, and what the kernel says about their processes."""
import contextlib
import http.client
import json
import os
import pathlib
import socket
import subprocess
import tempfile
import time

# The image that the benches run: what every step of a build and every command in a container needs.
BUSYBOX = """FROM scratch
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

    def run(self, *words, check=True):
        return subprocess.run(self.command(*words), check=check, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True)

    def close(self):
        self.holder.stdin.close()
        self.holder.wait()


class Connection:
    """HTTP requests over a Unix socket, each over a connection of its own."""

    def __init__(self, path):
        self.path = str(path)

    def ask(self, method, path, body=None):
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.connect(self.path)
        with contextlib.closing(connection):
            headers = {"Content-Type": "application/json"}
            connection.request(method, path, body=None if body is None else json.dumps(body), headers=headers)
            answer = connection.getresponse()
            data = answer.read()
            assert answer.status < 300, data
            return json.loads(data) if "json" in answer.headers.get("Content-Type", "") else data


class Engine:
    """What both have: a socket for the docker client, and processes that carry the engine's directory in their command lines."""

    name = ""

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        self.space = Space()
        self.config = tempfile.TemporaryDirectory(prefix="bench-config-")
        self.env = dict(os.environ, DOCKER_BUILDKIT="0", DOCKER_CONFIG=self.config.name)

    def docker(self, *words, check=True):
        # Not in the engine's namespaces, which the socket reaches out of: entering them would be a part of each figure.
        line = ["docker", "--host", f"unix://{self.socket}", *words]
        return subprocess.run(line, check=check, env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True)

    def exec_over_api(self, container, command):
        """What a client without a program of its own does: create an exec, start it, read to its end, ask for its status."""
        connection = Connection(self.socket)
        made = connection.ask("POST", f"/containers/{container}/exec", {"AttachStdout": True, "AttachStderr": True, "Cmd": command})
        connection.ask("POST", f"/exec/{made['Id']}/start", {"Detach": False, "Tty": False})
        assert connection.ask("GET", f"/exec/{made['Id']}/json")["ExitCode"] == 0

    def processes(self):
        """Process ids of the daemon and of all that it keeps per container."""
        found = []
        for entry in pathlib.Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                except OSError:
                    continue
                if f"{self.directory}" in line and "nsenter" not in line and "python" not in line:
                    found.append(int(entry.name))
        return found

    def memory_mib(self):
        """Resident and proportional memory of these processes."""
        rss = pss = 0
        for pid in self.processes():
            try:
                for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith("Rss:"):
                        rss += int(line.split()[1])
                    if line.startswith("Pss:"):
                        pss += int(line.split()[1])
            except OSError:
                pass
        return rss / 1024, pss / 1024


class Nuee(Engine):
    name = "nuee"

    def __init__(self, program, directory):
        super().__init__(directory)
        self.program = os.path.abspath(program)
        self.socket = self.directory / "docker.sock"

    def start(self):
        self.space.run(self.program, "up", "--detach", "--data-dir", self.directory)

    def kubectl(self, *words, check=True):
        return self.space.run("env", f"KUBECONFIG={self.directory}/kubeconfig", "kubectl", *words, check=check)

    def daemon(self):
        return int((self.directory / "nuee.pid").read_text())

    def close(self):
        self.space.run(self.program, "down", "--all", "--data-dir", self.directory, check=False)
        self.space.close()


class Dockerd(Engine):
    name = "dockerd"

    def __init__(self, directory):
        super().__init__(directory)
        self.directory.mkdir()
        self.socket = self.directory / "docker.sock"
        self.process = None

    def start(self):
        root = self.directory
        line = self.space.command("dockerd", "--data-root", root / "data", "--exec-root", root / "exec", "--pidfile", root / "pid",
                                  "--host", f"unix://{self.socket}", "--storage-driver", "overlay2")
        self.process = subprocess.Popen(line, stdout=open(root / "log", "w"), stderr=subprocess.STDOUT)
        while self.docker("version", check=False).returncode:
            time.sleep(0.02)

    def close(self):
        try:
            os.kill(int((self.directory / "pid").read_text()), 15)
        except (OSError, ValueError):
            pass
        if self.process:
            self.process.wait()
        self.space.close()


@contextlib.contextmanager
def both(program, work):
    """Both engines, started, each in namespaces of its own."""
    with contextlib.ExitStack() as stack:
        engines = []
        for engine in (Nuee(program, work / "nuee"), Dockerd(work / "dockerd")):
            stack.callback(engine.close)
            engine.start()
            engines.append(engine)
        yield engines
