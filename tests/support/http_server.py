"""A web server for tests, which serves a directory and refuses what a test wants refused."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Web:
    """A running server. `answer` returns the status that a path is answered with; 0: the file."""

    url: str
    answer: Callable[[str], int] = lambda path: 0


@contextmanager
def serve(directory: Path) -> Iterator[Web]:
    """Serve a directory. Python's server knows no ranges: it sends whole files."""
    web = Web("")

    class Handler(SimpleHTTPRequestHandler):
        def send_head(self) -> Any:
            if status := web.answer(self.path):
                self.send_error(status)
                return None
            return super().send_head()

        def log_message(self, *args: object) -> None:
            pass

    handler = partial(Handler, directory=str(directory))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        web.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever).start()
        try:
            yield web
        finally:
            server.shutdown()
