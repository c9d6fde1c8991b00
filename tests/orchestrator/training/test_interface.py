"""Ranks meet over an interface that is there, or are told which there are."""

import os

import pytest

from orchestrator.config.parse import ConfigError
from orchestrator.training.distributed.network_interface import use_interface

BACKENDS = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


@pytest.fixture(autouse=True)
def _environ(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in BACKENDS:  # whatever is set is taken back
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.parametrize("host", ["localhost", "127.0.1.1", "::1", "no such host"])
def test_a_node_that_others_cannot_reach_names_the_remedy(host: str) -> None:
    with pytest.raises(ConfigError, match=r"runtime\.network_interface") as error:
        use_interface(None, spans_nodes=True, host=host)
    assert host in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    use_interface(None, spans_nodes=False, host=host)  # nobody else has to


def test_a_node_with_an_address_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    use_interface(None, spans_nodes=True, host="192.0.2.1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")  # chosen by the site, or by hand
    use_interface(None, spans_nodes=True, host="localhost")


def test_an_interface_is_for_both_backends() -> None:
    use_interface("lo", spans_nodes=True, host="localhost")
    assert [os.environ[name] for name in BACKENDS] == ["lo", "lo"]
    with pytest.raises(ConfigError, match="has no ib99"):
        use_interface("lo,ib99", spans_nodes=False)
