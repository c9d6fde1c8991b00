"""The store of restarted ranks, where torchrun's agents keep what earlier ranks have written."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from orchestrator.training.distributed.agent_store import open_store

TIMEOUT = timedelta(seconds=20)


def test_restarted_ranks_meet_in_a_new_store(monkeypatch: pytest.MonkeyPatch) -> None:
    agents = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=TIMEOUT)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(agents.port))
    agents.set("tahoe/store", "1 of-a-dead-rank")  # nobody listens there
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(open_store, 1, TIMEOUT)
        first = open_store(0, TIMEOUT)
        assert waiting.result().port == first.port
        first.set("address of rank 0", "old")
        # Rank 1 is back before the end of the first rank 0, whose store it has been in.
        waiting = threads.submit(open_store, 1, TIMEOUT)
        second = open_store(0, TIMEOUT)
        back = waiting.result()
    assert back.port == second.port != first.port
    assert not back.check(["address of rank 0"])
