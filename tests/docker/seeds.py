#!/usr/bin/env python3
"""The images that every engine under test starts from, made here from Debian's static busybox, and a read-only registry that serves
them on loopback as a mirror of the Hub. Each tag is an image of its own, as on the Hub.

Run as a program it serves until its standard input ends: `seeds.py --port 5999`.
"""
import argparse
import gzip
import hashlib
import http.server
import io
import json
import pathlib
import re
import subprocess
import sys
import tarfile
import threading

BUSYBOX = pathlib.Path("/bin/busybox")
# A fixed instant, so that digests are the same on every machine with the same busybox.
CREATED = "2024-05-06T07:08:09Z"
PLATFORMS = ["amd64", "arm64"]
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
CONFIG = "application/vnd.docker.container.image.v1+json"
LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"

PASSWD = """root:x:0:0:root:/root:/bin/sh
daemon:x:2:2:daemon:/sbin:/sbin/nologin
postgres:x:70:70:postgres:/var/lib/postgresql:/bin/sh
nobody:x:65534:65534:nobody:/:/sbin/nologin
"""
GROUP = """root:x:0:root
daemon:x:2:root,daemon
staff:x:50:
postgres:x:70:
nogroup:x:65533:
nobody:x:65534:
"""
# Repository and tags; `busybox` and `alpine` differ in nothing but their mark.
IMAGES = {
    "busybox": ["latest", "1.35"],
    "alpine": ["latest", "3.10"],
    "hello-world": ["latest", "linux"],
}


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def root_file_system():
    """One layer: busybox with a link for each applet, and what an image needs for users and names."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        def add(name, kind=tarfile.REGTYPE, mode=0o644, data=b"", link="", owner=0):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode, entry.linkname, entry.mtime = kind, mode, link, 1714979289
            entry.uid = entry.gid = owner
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        for name in ["bin", "etc", "home", "lib", "media", "mnt", "proc", "root", "run", "sbin", "srv", "sys", "usr", "usr/bin",
                     "usr/sbin", "var", "var/lib", "var/log", "var/opt", "dev"]:
            add(name, tarfile.DIRTYPE, 0o700 if name == "root" else 0o755)
        add("tmp", tarfile.DIRTYPE, 0o1777)
        add("var/lib/postgresql", tarfile.DIRTYPE, 0o755, owner=70)
        add("bin/busybox", mode=0o755, data=BUSYBOX.read_bytes())
        for applet in subprocess.check_output([BUSYBOX, "--list"], text=True).split():
            if applet not in ("busybox", "linuxrc"):
                add(f"bin/{applet}", tarfile.SYMTYPE, 0o777, link="/bin/busybox")
        add("etc/passwd", data=PASSWD.encode())
        add("etc/group", data=GROUP.encode())
        add("etc/alpine-release", data=b"3.10.0\n")
    return buffer.getvalue()


def hello():
    """A file system with one program that says hello."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        entry = tarfile.TarInfo("busybox")
        data = BUSYBOX.read_bytes()
        entry.mode, entry.mtime, entry.size = 0o755, 1714979289, len(data)
        archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


class Registry:
    """The images as blobs, manifests and tags."""

    def __init__(self):
        self.blobs, self.manifests, self.tags = {}, {}, {}
        layers = {"full": root_file_system(), "hello": hello()}
        packed = {name: gzip.compress(data, 6, mtime=0) for name, data in layers.items()}
        for repository, tags in IMAGES.items():
            kind = "hello" if repository == "hello-world" else "full"
            for tag in tags:
                members = [self.image(repository, tag, machine, layers[kind], packed[kind]) for machine in PLATFORMS]
                index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": members}, indent=3).encode()
                self.manifests[digest(index)] = (INDEX, index)
                self.tags[f"library/{repository}", tag] = digest(index)

    def image(self, repository, tag, machine, layer, packed):
        command = ["/busybox", "echo", "Hello from Docker!"] if repository == "hello-world" else ["/bin/sh"]
        config = json.dumps({
            "architecture": machine, "os": "linux", "created": CREATED,
            "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": command,
                       "Labels": None if kind_is_plain(tag) else {"tag": f"{repository}:{tag}"}},
            "rootfs": {"type": "layers", "diff_ids": [digest(layer)]},
            "history": [{"created": CREATED, "created_by": f"/bin/sh -c #(nop) ADD file:{repository}-{tag} in / "}],
        }).encode()
        for data in (config, packed):
            self.blobs[digest(data)] = data
        manifest = json.dumps({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "size": len(config), "digest": digest(config)},
            "layers": [{"mediaType": LAYER, "size": len(packed), "digest": digest(packed)}],
        }, indent=3).encode()
        self.manifests[digest(manifest)] = (MANIFEST, manifest)
        return {"mediaType": MANIFEST, "size": len(manifest), "digest": digest(manifest),
                "platform": {"architecture": machine, "os": "linux"}}

    def find(self, path):
        """Content type and bytes of a path, or `None`."""
        if path in ("/v2/", "/v2"):
            return "application/json", b"{}"
        if match := re.fullmatch(r"/v2/(.+)/tags/list", path):
            tags = [tag for repository, tag in self.tags if repository == match[1]]
            body = json.dumps({"name": match[1], "tags": tags}).encode()
            return ("application/json", body) if tags else None
        if match := re.fullmatch(r"/v2/(.+)/manifests/(.+)", path):
            return self.manifests.get(self.tags.get((match[1], match[2]), match[2]))
        if match := re.fullmatch(r"/v2/(.+)/blobs/(.+)", path):
            data = self.blobs.get(match[2])
            return data and ("application/octet-stream", data)
        return None


def kind_is_plain(tag):
    return tag == "latest"


class Handler(http.server.BaseHTTPRequestHandler):
    registry = None
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        found = self.registry.find(self.path.split("?")[0])
        kind, body = found or ("application/json", b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}')
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
        if "/manifests/" in self.path and found:
            self.send_header("Docker-Content-Digest", digest(body))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    Handler.registry = Registry()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", parser.parse_args().port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print("serving", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
