"""A Hugging Face hub on this machine, as far as an upload needs one: who I am, new repositories, commits.

It keeps every file in memory. Each file is taken as an ordinary one, inside its commit, as the hub takes small ones.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlparse

TOKEN = "hf_of_a_test"
COMMIT = "0" * 40


class FakeHub:
    """What was sent: repositories as (kind, name) with how they were made, their files, and what commits say."""

    def __init__(self) -> None:
        self.url = ""
        self.made: dict[tuple[str, str], dict[str, Any]] = {}
        self.files: dict[tuple[str, str], dict[str, bytes]] = {}
        self.messages: list[str] = []
        self.forbidden = False

    def answer(self, method: str, path: str, body: bytes, token: str) -> tuple[int, Any]:
        """The status and the JSON that the hub answers."""
        if token != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid credentials"}
        parts = path.strip("/").split("/")
        if parts == ["api", "whoami-v2"]:
            return 200, {"type": "user", "name": "me", "orgs": []}
        if parts == ["api", "validate-yaml"]:
            return 200, {"errors": [], "warnings": []}
        if self.forbidden:
            return 403, {"error": "no right to write"}
        if parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            kind, name = asked.get("type", "model"), f"{asked['organization']}/{asked['name']}"
            self.made.setdefault((kind, name), asked)
            self.files.setdefault((kind, name), {})
            prefix = "" if kind == "model" else f"{kind}s/"
            return 200, {"url": f"{self.url}/{prefix}{name}"}
        kind, name = parts[1].removesuffix("s"), "/".join(parts[2:4])
        if (kind, name) not in self.files:
            return 404, {"error": "Repository not found"}
        if parts[4] == "preupload":
            asked = json.loads(body)["files"]
            return 200, {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]}
        if parts[4] == "commit":
            for line in body.decode().splitlines():
                said = json.loads(line)
                if said["key"] == "header":
                    self.messages.append(said["value"]["summary"])
                else:
                    assert said["key"] == "file", said
                    value = said["value"]
                    self.files[kind, name][value["path"]] = base64.b64decode(value["content"])
            return 200, {"success": True, "commitOid": COMMIT, "commitUrl": f"{self.url}/{name}/commit/{COMMIT}"}
        return 200, {"id": name, "sha": COMMIT, "siblings": [], "tags": [], "private": True}


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A hub that listens on a port of this machine until the end of the block."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, found = hub.answer(
                self.command, urlparse(self.path).path, body, self.headers.get("Authorization", "")
            )
            told = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(told)))
            self.end_headers()
            self.wfile.write(told)

        do_GET = do_POST = do_HEAD = do

        def log_message(self, *words: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
