"""An S3 server for tests: moto's, in a process of its own, with faults drawn by seed and number.

    with serve() as s3:
        s3.put(s3.url("set"), Path("datasets/digits"))
        s3.fail(errors=0.1, cuts=0.1, stalls=0.1)

While it serves, `s3://` URLs lead to it, in this process and in every one started from it.
"""

import hashlib
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import fsspec
import fsspec.config
import numpy as np
import pytest
import webdataset
from fork_server import restart_fork_server

from data_sharding.format.manifest import ShardInfo

Shards = list[ShardInfo]

BUCKET = "bucket"
_CONTROL = "/_control/"
_ERROR = b"<Error><Code>%s</Code><Message>as asked for</Message></Error>"


@dataclass(frozen=True)
class Faults:
    """What goes wrong with GETs of objects: shares of them, drawn by the number of the request.

    key, token: the only ones that have not expired, of any request; None: all are good.
    """

    errors: float = 0  # a status of 500 or 503
    cuts: float = 0  # the connection is closed in the middle of the body
    stalls: float = 0  # nothing comes for `stall_s`
    latency_s: float = 0
    stall_s: float | tuple[float, float] = 60  # or a range, from which it is drawn
    seed: int = 0
    key: str | None = None
    token: str | None = None


@dataclass(frozen=True)
class S3:
    """A running server."""

    endpoint: str

    def url(self, *names: str) -> str:
        return "/".join((f"s3://{BUCKET}", *names))

    def put(self, url: str, directory: Path) -> None:
        """Copy all that lies in a local directory to below a URL."""
        fs, root = fsspec.core.url_to_fs(url)
        for path in sorted(directory.rglob("*")):
            if path.is_file():
                fs.pipe_file(f"{root}/{path.relative_to(directory)}", path.read_bytes())

    def fail(self, **faults: float | str | tuple[float, float]) -> None:
        """Let requests fail like this from now on, counted from 0; without arguments none does."""
        self._control("faults", asdict(Faults(**faults)))  # type: ignore[arg-type]

    def requests(self) -> list[dict[str, Any]]:
        """Return method, path, bytes asked for, and fault of each request since `fail` or `forget`.

        HEADs and GETs of objects only.
        """
        return self._control("requests")

    def forget(self) -> None:
        """Forget the requests so far."""
        self._control("forget")

    def downloads(self) -> "Counter[str]":
        """Return how often the first byte of each object was sent whole, by the object's name."""
        return Counter(
            request["path"].rpartition("/")[2]
            for request in self.requests()
            if request["method"] == "GET" and not request["fault"] and request["start"] == 0
        )

    def _control(self, verb: str, body: object = None) -> Any:
        data = json.dumps(body).encode()
        with urlopen(f"{self.endpoint}{_CONTROL}{verb}", data, timeout=30) as answer:
            return json.load(answer)


@contextmanager
def serve() -> Iterator[S3]:
    """Run a server with an empty bucket."""
    command = [sys.executable, __file__]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **pipes) as process, pytest.MonkeyPatch.context() as patch:  # type: ignore[call-overload]
        try:
            s3 = S3(f"http://127.0.0.1:{int(process.stdout.readline())}")
            options = {"key": "testing", "secret": "testing", "endpoint_url": s3.endpoint}
            for name, value in options.items():
                patch.setenv(f"FSSPEC_S3_{name.upper()}", value)
            patch.setitem(fsspec.config.conf, "s3", options)  # read from there at import only
            restart_fork_server()  # one that runs would not know the server
            fsspec.filesystem("s3").mkdir(BUCKET)
            s3.forget()
            yield s3
        finally:
            process.stdin.close()
            process.wait(timeout=30)


class _Faulty:
    """A WSGI application in front of moto's."""

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self._application = application
        self._lock = threading.Lock()
        self._faults, self._number, self._requests = Faults(), 0, list[dict[str, Any]]()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        if path.startswith(_CONTROL):
            return self._control(path.removeprefix(_CONTROL), environ, start_response)
        is_read = method in ("GET", "HEAD") and path.count("/") >= 2
        faults, fault = self._faults, None
        if is_read:
            faults, fault = self._draw(method, path, environ.get("HTTP_RANGE"))
        if _is_expired(faults, environ):
            start_response("400 Bad Request", [("Content-Type", "application/xml")])  # as AWS
            return [] if method == "HEAD" else [_ERROR % b"ExpiredToken"]
        if not is_read:
            return self._application(environ, start_response)
        time.sleep(faults.latency_s)
        if fault == "error":
            code = (b"InternalError", b"SlowDown")[self._number % 2]
            status = {b"InternalError": "500 Internal Error", b"SlowDown": "503 Slow Down"}[code]
            start_response(status, [("Content-Type", "application/xml")])
            return [_ERROR % code]
        if fault == "stall":
            time.sleep(self._stall_s(faults))
        body = self._application(environ, start_response)
        return self._cut(body) if fault == "cut" else body

    def _draw(self, method: str, path: str, asked: str | None) -> tuple[Faults, str | None]:
        with self._lock:
            faults, number = self._faults, self._number
            self._number += 1
            fault = None
            if method == "GET":
                place = random.Random(f"{faults.seed} {number}").random()
                for name in ("error", "cut", "stall"):
                    share = getattr(faults, f"{name}s")
                    if 0 <= place < share:
                        fault = name
                    place -= share
            start, stop = (asked or "bytes=0-").removeprefix("bytes=").split("-")
            self._requests.append(
                {
                    "method": method,
                    "path": path,
                    "start": int(start),
                    "stop": int(stop) + 1 if stop else None,
                    "fault": fault,
                }
            )
            return faults, fault

    def _stall_s(self, faults: Faults) -> float:
        bounds = faults.stall_s
        return random.uniform(*bounds) if isinstance(bounds, list | tuple) else bounds

    def _cut(self, body: Iterable[bytes]) -> Iterator[bytes]:
        whole = b"".join(body)
        yield whole[: len(whole) // 2]
        raise ConnectionAbortedError

    def _control(self, verb: str, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        body = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
        with self._lock:
            answer = self._requests if verb == "requests" else None
            if verb == "faults":
                self._faults, self._number = Faults(**body), 0
            if verb in ("faults", "forget"):
                self._requests = []
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(answer).encode()]


def _is_expired(faults: Faults, environ: Any) -> bool:
    key, token = environ.get("HTTP_AUTHORIZATION", ""), environ.get("HTTP_X_AMZ_SECURITY_TOKEN")
    is_other_key = faults.key is not None and f"={faults.key}/" not in key
    return is_other_key or (faults.token is not None and faults.token != token)


def make_shards(directory: Path, num_shards: int, num_samples: int, num_bytes: int) -> Shards:
    """Write shards of images that are nothing but noise, with their number as the label."""
    rng, shards = np.random.default_rng(0), []
    directory.mkdir(parents=True, exist_ok=True)
    for number in range(num_shards):
        path = directory / f"shard-{number:06d}.tar"
        with webdataset.TarWriter(str(path)) as tar:
            for i in range(num_samples):
                key = f"{number:03d}-{i:04d}"
                tar.write({"__key__": key, "jpg": rng.bytes(num_bytes), "cls": str(i % 7)})
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        shards.append(ShardInfo(path.name, num_samples, len(data), digest))
    return shards


def _end_with_the_test() -> None:
    os.read(sys.stdin.fileno(), 1)  # nothing ever comes but the end
    os._exit(0)


def main() -> None:
    """Serve on a free port, which is printed, until standard input ends."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    threading.Thread(target=_end_with_the_test, daemon=True).start()
    application = _Faulty(DomainDispatcherApplication(create_backend_app))

    class Quiet(WSGIRequestHandler):
        def log(self, *args: object) -> None:
            pass

    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Quiet)
    print(server.port, flush=True)
    server.serve_forever()


def take_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `s3://` URLs lead to a port where nobody listens, each asked for once."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{probe.getsockname()[1]}"  # where nobody listens
    once = {"retries": {"max_attempts": 0}}
    options = {"key": "a", "secret": "b", "endpoint_url": endpoint, "config_kwargs": once}
    monkeypatch.setitem(fsspec.config.conf, "s3", options)
    monkeypatch.setattr(fsspec.get_filesystem_class("s3"), "retries", 1)


if __name__ == "__main__":
    main()
