#!/usr/bin/env python3
"""Serves the bare repositories of a directory over HTTP, by git's own program for that: git_server.py DIRECTORY PORT

/private/NAME.git wants the user `me` with the password `pass word`; /moved/NAME.git is a redirect to /NAME.git; /old/NAME.git speaks the
protocol's first version only; /away/NAME.git is a redirect to http://localhost, which is another host by name. What was asked, and
whether credentials came with it, is printed.
"""

import base64
import http.server
import os
import subprocess
import sys

DIRECTORY, PORT = sys.argv[1], int(sys.argv[2])
CREDENTIALS = "Basic " + base64.b64encode(b"me:pass word").decode()


class Handler(http.server.BaseHTTPRequestHandler):
    def refuse(self, status, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def serve(self):
        given = self.headers.get("Authorization")
        print(self.command, self.headers.get("Host"), self.path, "with credentials" if given else "", flush=True)
        path, _, query = self.path.partition("?")
        place, _, rest = path[1:].partition("/")
        version = self.headers.get("Git-Protocol", "")
        if place == "moved":
            return self.refuse(301, Location=f"/{rest}?{query}")
        if place == "away":
            return self.refuse(302, Location=f"http://localhost:{PORT}/{rest}?{query}")
        if place == "private":
            if given != CREDENTIALS:
                return self.refuse(401, WWW_Authenticate="Basic")
            path = "/" + rest
        if place == "old":
            version, path = "", "/" + rest
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        environment = dict(
            os.environ, GIT_PROJECT_ROOT=DIRECTORY, GIT_HTTP_EXPORT_ALL="1", PATH_INFO=path, QUERY_STRING=query,
            REQUEST_METHOD=self.command, CONTENT_TYPE=self.headers.get("Content-Type", ""), GIT_PROTOCOL=version,
            CONTENT_LENGTH=str(len(body)), GIT_CONFIG_COUNT="1", GIT_CONFIG_KEY_0="safe.directory", GIT_CONFIG_VALUE_0="*")
        done = subprocess.run(["git", "http-backend"], input=body, env=environment, stdout=subprocess.PIPE, check=False)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if line)
        self.send_response(int(fields.pop("Status", "200").split()[0]))
        for name, value in fields.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = serve

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
