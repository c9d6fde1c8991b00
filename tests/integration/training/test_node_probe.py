"""What ranks find on their nodes: real processes that meet over gloo."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.parse import parse, to_dict
from orchestrator.run.rundir import RunDir

NO_LOCKS = """
import errno, fcntl, os
def flock(file, operation):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
fcntl.flock = flock
"""


@pytest.mark.parametrize(("ranks_per_node", "has_locks"), [(1, True), (2, False)])
def test_each_rank_reports(
    values: dict[str, Any], digits: Path, tmp_path: Path, ranks_per_node: int, has_locks: bool
) -> None:
    values["data"]["url"] = str(digits)
    run = RunDir(tmp_path)
    run.write_config(to_dict(parse(values)))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    modules = tmp_path / "modules"
    modules.mkdir()
    # As on a file system without locks, which cannot be mounted where tests run.
    (modules / "sitecustomize.py").write_text("" if has_locks else NO_LOCKS)
    ranks = []
    for rank in range(2):
        environ = os.environ | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank % ranks_per_node),
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": str(ranks_per_node),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "PYTHONPATH": str(modules),
        }
        command = [sys.executable, "-m", "orchestrator.torch_workers.node_probe", str(tmp_path)]
        ranks.append(subprocess.Popen(command, env=environ))
    assert [rank.wait(timeout=60) for rank in ranks] == [0, 0]

    first, second = json.loads((tmp_path / "report.json").read_text())
    assert first["host"] == second["host"] == socket.gethostname()
    assert [first["unseen"], second["unseen"]] == [[], []]
    for one in (first, second):
        assert one["unlocked"] is None if has_locks else "without locks" in one["unlocked"]
    assert first["clock"] == {"ahead_s": 0, "within_s": 0}
    assert abs(second["clock"]["ahead_s"]) <= second["clock"]["within_s"] < 1  # one clock
    for one in (first, second):
        assert 1e6 < one["all_reduce"]["bytes_per_s"] < 1e12
        assert 0 < one["all_reduce"]["latency_s"] < 1
    shards = sorted((digits / "train").glob("*.tar"))
    sizes = [shard.stat().st_size for shard in shards]
    read = [one["read"] and one["read"]["num_bytes"] for one in (first, second)]
    assert read == (
        [sum(sizes[::2]), sum(sizes[1::2])] if ranks_per_node == 1 else [sum(sizes), None]
    )
    assert first["read"]["num_images"] == pytest.approx(1438 * read[0] / sum(sizes))
