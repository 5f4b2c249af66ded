#!/usr/bin/env python3
"""1,000 pods onto 500 machines that exist only as objects: pods bound per second, and how fast endpoints follow readiness.

Starts a Nuée of its own in network and mount namespaces, creates the machines and the pods over TLS as any client does, and
watches when each pod gets its machine. Prints one table. The bar is ten times kube-scheduler's 115 pods per second.
"""
import argparse
import base64
import ctypes
import json
import os
import pathlib
import re
import shutil
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "docker"))
import engines  # noqa: E402  (the directory beside is a program)

CONNECTIONS = 16
BAR = 1150
# From linux/sched.h.
CLONE_NEWNET = 0x40000000


def set_namespace(descriptor):
    """setns(2), which Python knows from 3.12 on only."""
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


class Space(engines.Space):
    """Namespaces that a thread of this program can move into."""

    def enter(self):
        """Moves this thread into the network namespace."""
        set_namespace(os.open(f"/proc/{self.holder.pid}/ns/net", os.O_RDONLY))


class Api:
    """Plain HTTP/1.1 over TLS with the administrator's certificate."""

    def __init__(self, data):
        text = (data / "kubeconfig").read_text()
        self.context = ssl.create_default_context()
        self.context.check_hostname, self.context.verify_mode = False, ssl.CERT_NONE
        with tempfile.NamedTemporaryFile() as pem:
            for key in ("client-certificate-data", "client-key-data"):
                pem.write(base64.b64decode(re.search(key + r'"?: "?([A-Za-z0-9+/=]+)', text).group(1)))
            pem.flush()
            self.context.load_cert_chain(pem.name)

    def connect(self):
        plain = socket.create_connection(("127.0.0.1", 6443))
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.context.wrap_socket(plain)


def request(stream, method, path, body=b"", kind="application/json"):
    head = f"{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    stream.sendall(head.encode() + body)
    data = b""
    while b"\r\n\r\n" not in data:
        data += stream.recv(65536)
    head, data = data.split(b"\r\n\r\n", 1)
    length = int(re.search(rb"content-length: (\d+)", head.lower()).group(1))
    while len(data) < length:
        data += stream.recv(65536)
    status = int(head.split()[1])
    assert status < 300, (status, path, data[:300])
    return data


def in_parallel(api, jobs):
    """Runs (method, path, body, kind) over several connections; answers the seconds."""
    streams = [api.connect() for _ in range(CONNECTIONS)]

    def work(index):
        for job in jobs[index::CONNECTIONS]:
            request(streams[index], *job)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(CONNECTIONS)]
    begin = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.monotonic() - begin


def watch(api, path, seen):
    """Calls `seen(event)` for each watch event until it answers true."""
    stream = api.connect()
    stream.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    text = b""
    while True:
        text += stream.recv(1 << 20)
        *lines, text = text.split(b"\n")
        for line in lines:
            if line.startswith(b"{") and seen(line):
                return


def make_nodes(api, count):
    node = lambda name: json.dumps({"metadata": {"name": name, "labels": {"fake": "true", "kubernetes.io/hostname": name}}}).encode()
    in_parallel(api, [("POST", "/api/v1/nodes", node(name)) for name in names(count)])


def names(count):
    return [f"fake-{number:04}" for number in range(count)]


def beat(api, count):
    """A sign of life of every machine; without one for 40 seconds they would count as lost."""
    size = {"cpu": "4", "memory": "32Gi", "pods": "110"}
    ready = {"type": "Ready", "status": "True", "lastHeartbeatTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    status = json.dumps({"status": {"allocatable": size, "capacity": size, "conditions": [ready]}}).encode()
    in_parallel(api, [("PATCH", f"/api/v1/nodes/{name}/status", status, "application/merge-patch+json") for name in names(count)])


def bind_pods(api, count, round_name):
    bound = {}

    def seen(line):
        if b'"nodeName":"fake-' in line:
            name = re.search(rb'"name":"(%s-\d+)"' % round_name.encode(), line)
            if name:
                bound.setdefault(name.group(1), time.monotonic())
        return len(bound) >= count

    watcher = threading.Thread(target=watch, args=(api, "/api/v1/namespaces/default/pods?watch=true", seen))
    watcher.start()
    pod = lambda name: json.dumps({
        "metadata": {"name": name},
        "spec": {"nodeSelector": {"fake": "true"}, "containers": [
            {"name": "c", "image": "none", "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}}}]}}).encode()
    jobs = [("POST", "/api/v1/namespaces/default/pods", pod(f"{round_name}-{number}")) for number in range(count)]
    begin = time.monotonic()
    created = in_parallel(api, jobs)
    watcher.join()
    times = sorted(bound.values())
    return count / created, count / (times[-1] - begin)


def endpoint_delay(api, rounds):
    """From the write that a pod is (not) ready to the EndpointSlice that says so. Units: ms."""
    stream = api.connect()
    labels = {"app": "slow"}
    body = {"metadata": {"name": "slow", "labels": labels}, "spec": {"nodeName": "fake-0000", "containers": [{"name": "c", "image": "none"}]}}
    request(stream, "POST", "/api/v1/namespaces/default/pods", json.dumps(body).encode())
    body = {"metadata": {"name": "slow"}, "spec": {"selector": labels, "ports": [{"port": 80}]}}
    request(stream, "POST", "/api/v1/namespaces/default/services", json.dumps(body).encode())
    changes, wanted = [], threading.Event()
    state = {"ready": None}

    def seen(line):
        ready = re.search(rb'"ready":(true|false)', line)
        if ready and ready.group(1) == state["ready"]:
            changes.append(time.monotonic())
            wanted.set()
        return len(changes) >= rounds

    path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?watch=true&labelSelector=kubernetes.io/service-name=slow"
    threading.Thread(target=watch, args=(api, path, seen), daemon=True).start()
    delays = []
    for number in range(rounds):
        ready = number % 2 == 0
        wanted.clear()
        state["ready"] = b"true" if ready else b"false"
        status = {"status": {"podIP": "10.88.200.1", "conditions": [{"type": "Ready", "status": "True" if ready else "False"}]}}
        begin = time.monotonic()
        request(stream, "PATCH", "/api/v1/namespaces/default/pods/slow/status", json.dumps(status).encode(), "application/merge-patch+json")
        assert wanted.wait(10), "the slice did not follow"
        delays.append((changes[-1] - begin) * 1000)
    return delays


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nuee", default="target/release/nuee")
    parser.add_argument("--pods", type=int, default=1000)
    parser.add_argument("--nodes", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    directory = pathlib.Path(tempfile.mkdtemp(prefix="bench-schedule-"))
    space, data = Space(), directory / "data"
    run = lambda *words: subprocess.run(space.command(os.path.abspath(options.nuee), *words, "--data-dir", data), check=True, stdout=subprocess.DEVNULL)
    try:
        run("up", "--detach")
        home = os.open("/proc/self/ns/net", os.O_RDONLY)
        space.enter()
        api = Api(data)
        make_nodes(api, options.nodes)
        rates = []
        for number in range(options.rounds):
            beat(api, options.nodes)
            rates.append(bind_pods(api, options.pods, f"round{number}"))
        delays = endpoint_delay(api, 40)
        set_namespace(home)
    finally:
        run("down", "--all")
        space.close()
        shutil.rmtree(directory, ignore_errors=True)
    created, bound = (statistics.median(column) for column in zip(*rates))
    print(f"{options.pods} pods onto {options.nodes} machines, median of {options.rounds} rounds, {CONNECTIONS} connections")
    print("| measure | nuee | bar |\n|---|---|---|")
    print(f"| pods created per second | {created:,.0f} | – |")
    print(f"| pods bound per second, from the first create to the last bind seen | {bound:,.0f} | {BAR:,} |")
    print(f"| endpoint slice after a change of readiness, median | {statistics.median(delays):.1f} ms | 100 ms |")
    print(f"| endpoint slice after a change of readiness, worst of {len(delays)} | {max(delays):.1f} ms | 100 ms |")


main()
