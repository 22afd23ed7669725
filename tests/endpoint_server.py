"""An OpenAI-compatible endpoint on this machine that answers, fails, stalls, refuses, cuts off and returns rubbish."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    """Prefers the longer response; `script` holds what goes wrong with the next requests, in turn.

    `always` goes wrong with all others, and `rule` says of a question (prompt, first, second) what does: a status,
    stall, drip, drip headers, cut, gzip, endless, html, rubbish, refuse, truncate, or a verdict that it gives
    whatever is longer. `answered` counts answers, and `usage` is what each is said to have cost.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[str] = []
        self.always = ""
        self.usage: Any = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
        self.rule: Callable[[dict[str, str]], str] = lambda data: ""
        self.asked: list[dict[str, Any]] = []
        self.answered: Counter[str] = Counter()
        self.keys: set[str] = set()
        self.now, self.most, self.lock = 0, 0, threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *words: Any) -> None:
        """Quiet."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        data = json.loads(body["messages"][1]["content"])
        server = self.server
        with server.lock:
            server.asked.append(body)
            server.keys.add(self.headers.get("Authorization", ""))
            what = server.script.pop(0) if server.script else server.always or server.rule(data)
            server.now += 1
            server.most = max(server.most, server.now)
        time.sleep(0.02)
        with server.lock:
            server.now -= 1
        if what.isdigit():
            return self.reply(int(what), json.dumps({"error": {"message": f"no: {self.headers['Authorization']}"}}))
        if what == "stall":
            time.sleep(1.0)
        with server.lock:
            server.answered[body["messages"][1]["content"]] += 1
        if what == "html":
            return self.reply(200, "<html>rubbish</html>")
        first, second = len(data["first"]), len(data["second"])
        say = json.dumps({"better": "first" if first > second else "second" if second > first else "tie"})
        if what in ("first", "second", "tie"):
            say = json.dumps({"better": what})
        message: dict[str, Any] = {"role": "assistant", "content": {"rubbish": "I like the first"}.get(what, say)}
        if what == "refuse":
            message |= {"content": None, "refusal": "no"}
        choice = {"index": 0, "message": message, "finish_reason": "length" if what == "truncate" else "stop"}
        done = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        done["usage"] = server.usage
        text = json.dumps(done)
        if what == "drip":
            return self.drip(text)
        if what == "drip headers":
            return self.drip_headers(text)
        if what in ("cut", "gzip"):
            return self.reply(200, text, broken=what)
        self.reply(200, text + " " * (8 << 20) if what == "endless" else text)

    def drip_headers(self, text: str) -> None:
        """Headers a byte at a time, then an answer that would be right."""
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n"
        try:
            for letter in f"{head}X-Slow: {'z' * 200}\r\n\r\n{text}":
                self.wfile.write(letter.encode())
                self.wfile.flush()
                time.sleep(0.02)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def drip(self, text: str) -> None:
        """An answer a byte at a time."""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        try:
            for letter in text:
                self.wfile.write(letter.encode())
                self.wfile.flush()
                time.sleep(0.05)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def reply(self, status: int, text: str, broken: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json" if text[0] == "{" else "text/html")
        if broken == "gzip":  # which the text is not
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(text) + (10 if broken == "cut" else 0)))
        self.send_header("retry-after-ms", "5")
        try:
            self.end_headers()
            self.wfile.write(text.encode())
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # who waited has gone


@contextmanager
def serving() -> Iterator[Server]:
    """The server, answering on a port of its own until the block ends."""
    made = Server()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.shutdown()
        made.server_close()
