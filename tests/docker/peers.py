"""The engines that are compared: Nuée and dockerd, each in network and mount namespaces of its own, with a mirror of the seeds beside it."""
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
MIRROR_PORT = 5999
# An address that is not loopback, for what must be reachable from elsewhere.
HOST_ADDRESS = "198.51.100.1"
PATIENCE_SECONDS = 60
INSIDE = f"""
mount --make-rshared / &&
ip link set lo up && ip link add up0 type bridge && ip addr add {HOST_ADDRESS}/24 dev up0 && ip link set up0 up &&
echo up && exec cat
"""


class Space:
    """Namespaces, held open by a process; with a shared root mount and one address besides loopback."""

    def __init__(self):
        self.holder = subprocess.Popen(["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", INSIDE],
                                       stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self.holder.stdout.readline().strip() != "up":
            sys.exit("cannot make namespaces: this must be run by root, with iproute2 and util-linux")

    def command(self, *words):
        return ["nsenter", "--net", "--mount", "--target", str(self.holder.pid), "--", *map(str, words)]

    def close(self):
        self.holder.stdin.close()
        self.holder.wait()


class Peer:
    """One engine: `start` it, talk to it by `docker`, `close` it."""

    name = ""

    def __init__(self, keep=False):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix=f"peer-{self.name}-"))
        self.keep = keep
        self.space = Space()
        self.mirror = subprocess.Popen(
            self.space.command(sys.executable, HERE / "seeds.py", "--port", MIRROR_PORT),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.mirror.stdout.readline()
        self.environment = dict(
            os.environ, DOCKER_HOST=f"unix://{self.socket}", DOCKER_TEST_API_VERSION="1.41", DOCKER_CONFIG=str(self.directory / "config"), DOCKER_BUILDKIT="0",
            LC_ALL="C.UTF-8", TZ="UTC", HOME=str(self.directory))

    @property
    def socket(self):
        return self.directory / "docker.sock"

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_):
        self.close()

    def run(self, words, **options):
        """Any program in the namespaces, with the engine in its environment."""
        return subprocess.run(self.space.command(*words), env=self.environment, **options)

    def docker(self, *words, timeout=120, check=True):
        done = self.run(["docker", *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout)
        if check and done.returncode:
            raise RuntimeError(f"{self.name}: docker {' '.join(words)}: {done.stderr}")
        return done

    def wait_ready(self):
        end = time.monotonic() + PATIENCE_SECONDS
        while self.docker("version", check=False).returncode:
            if time.monotonic() > end:
                raise RuntimeError(f"{self.name} is not ready within {PATIENCE_SECONDS} s; see {self.directory}")
            time.sleep(0.1)

    def close(self):
        self.stop()
        self.mirror.stdin.close()
        self.mirror.wait()
        self.space.close()
        if not self.keep:
            shutil.rmtree(self.directory, ignore_errors=True)


class Dockerd(Peer):
    """Debian's dockerd with a containerd of its own."""

    name = "dockerd"
    process = None

    def start(self, *flags):
        log = open(self.directory / "log", "wb")
        self.process = subprocess.Popen(
            self.space.command(
                "dockerd", f"--host={self.environment['DOCKER_HOST']}", f"--data-root={self.directory}/data",
                f"--exec-root={self.directory}/exec", f"--pidfile={self.directory}/pid",
                f"--registry-mirror=http://127.0.0.1:{MIRROR_PORT}", f"--cgroup-parent=/{self.directory.name}", *flags),
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment)
        self.wait_ready()

    def stop(self):
        if not self.process:
            return
        ids = self.docker("ps", "-aq", check=False).stdout.split()
        if ids:
            self.docker("rm", "-f", *ids, check=False)
        # nsenter becomes dockerd, so this is dockerd's own pid.
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()
        for hierarchy in pathlib.Path("/sys/fs/cgroup").iterdir():
            group = hierarchy / self.directory.name
            if group.is_dir():
                try:
                    group.rmdir()
                except OSError:
                    pass


class Nuee(Peer):
    """Nuée from a given program."""

    name = "nuee"

    def __init__(self, program, keep=False, settings=""):
        self.program, self.settings = pathlib.Path(program).resolve(), settings
        super().__init__(keep)

    @property
    def data(self):
        return self.directory / "data"

    @property
    def socket(self):
        return self.data / "docker.sock"

    def nuee(self, *words):
        return self.run([self.program, *words, "--data-dir", self.data], stdin=subprocess.DEVNULL, capture_output=True, text=True)

    def start(self):
        self.data.mkdir(parents=True, exist_ok=True)
        (self.data / "config.yaml").write_text(
            f"registryMirrors: ['http://127.0.0.1:{MIRROR_PORT}']\nnodeName: peer\n" + self.settings)
        done = self.nuee("up", "--detach")
        if done.returncode:
            raise RuntimeError(f"nuee up: {done.stderr}")
        self.wait_ready()

    def stop(self):
        if self.data.exists():
            self.nuee("down", "--all")
