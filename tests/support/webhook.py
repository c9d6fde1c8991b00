"""A receiver of POSTs, which keeps them; or whose answer never ends."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Webhook:
    """A running server: its URL, and the path, content type and value of each POST."""

    url: str = ""
    status: int = 200
    posts: list[tuple[str, str, Any]] = field(default_factory=list)


@contextmanager
def webhook(*, answers: bool = True) -> Iterator[Webhook]:
    """Serve on this machine; without answers, a POST gets a byte now and then, and no timeout."""
    hook, ended = Webhook(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            hook.posts.append((self.path, self.headers["Content-Type"], json.loads(body)))
            while not answers and not ended.wait(0.1):
                self.wfile.write(b"H")
            self.send_response(hook.status)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        hook.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        try:
            yield hook
        finally:
            ended.set()
            server.shutdown()
