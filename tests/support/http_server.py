"""A web server for tests, which serves a directory and refuses what a test wants refused."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_PIECE_BYTES = 100_000


@dataclass
class Web:
    """A running server. `answer` returns the status that a path is answered with; 0: the file.

    `pause_s` is the time between two pieces of a file.
    """

    url: str
    answer: Callable[[str], int] = lambda path: 0
    pause_s: float = 0


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

        def copyfile(self, source: Any, outputfile: Any) -> None:
            if not web.pause_s:
                super().copyfile(source, outputfile)
            with suppress(ConnectionError):  # a client that has seen enough
                while piece := source.read(_PIECE_BYTES):
                    outputfile.write(piece)
                    time.sleep(web.pause_s)

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
