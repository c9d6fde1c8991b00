"""A server for tests that answers as the Hub of Hugging Face for one data set, `user/set`."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import fsspec.config
import pytest

URL = "hf://datasets/user/set"
_TREE, _FILES = "/api/datasets/user/set/tree/main", "/datasets/user/set/resolve/main/"
_COMMIT = "a" * 40


class _Hub(BaseHTTPRequestHandler):
    def __init__(self, *arguments: Any, root: Path, fetched: list[tuple[int, int]]) -> None:
        self._root, self._fetched = root, fetched
        super().__init__(*arguments)

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith(_TREE):
            directory = self._root / path.removeprefix(_TREE).strip("/")
            if not directory.is_dir():
                return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            self._send_json([self._entry(entry) for entry in sorted(directory.iterdir())])
        elif path.startswith(_FILES):
            self._send_file(self._root / path.removeprefix(_FILES))
        else:
            self._send_json({"id": "user/set", "sha": _COMMIT, "siblings": []})
        return None

    def do_POST(self) -> None:
        """Answer `paths-info`."""
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self._send_json([self._entry(self._root / path) for path in parse_qs(body)["paths"]])

    def _entry(self, path: Path) -> dict[str, Any]:
        name = str(path.relative_to(self._root))
        if path.is_dir():
            return {"type": "directory", "path": name, "size": 0, "oid": _COMMIT}
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        large = {"oid": digest, "size": len(data), "pointerSize": 130}
        entry = {"type": "file", "path": name, "size": len(data), "oid": digest[:40]}
        return {**entry, "lfs": large}

    def _send_json(self, content: Any) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send_file(self, path: Path) -> None:
        data = path.read_bytes()
        start, stop = 0, len(data)
        if wanted := self.headers.get("Range"):
            first, last = wanted.removeprefix("bytes=").split("-")
            start, stop = int(first), min(int(last or stop) + 1, stop)
        fields = {"Accept-Ranges": "bytes", "ETag": '"1"', "X-Repo-Commit": _COMMIT}
        fields |= {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
        if self.command == "GET":
            self._fetched.append((start, stop))
        self._send(206 if wanted else 200, data[start:stop], fields)

    def _send(self, status: int, content: bytes, fields: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**fields, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def serve(root: Path) -> Iterator[list[tuple[int, int]]]:
    """Serve a directory as `hf://datasets/user/set`; yield the ranges of files that are fetched."""
    fetched: list[tuple[int, int]] = []
    handler = partial(_Hub, root=root, fetched=fetched)
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), handler) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        options = {"endpoint": f"http://127.0.0.1:{server.server_port}", "token": False}
        patch.setitem(fsspec.config.conf, "hf", options)
        threading.Thread(target=server.serve_forever).start()
        try:
            yield fetched
        finally:
            server.shutdown()
