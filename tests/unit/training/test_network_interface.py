"""Ranks connect over an interface that exists, or the error lists those that do."""

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
def test_a_node_with_a_loopback_address_is_refused(host: str) -> None:
    with pytest.raises(ConfigError) as error:
        use_interface(None, spans_nodes=True, host=host)
    assert error.value.value == host
    assert "runtime.network_interface" in error.value.hint
    use_interface(None, spans_nodes=False, host=host)  # no other node needs the address


def test_a_node_with_an_address_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    use_interface(None, spans_nodes=True, host="192.0.2.1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")  # chosen by the site, or by hand
    use_interface(None, spans_nodes=True, host="localhost")


def test_interface_is_set_for_gloo_and_nccl() -> None:
    use_interface("lo", spans_nodes=True, host="localhost")
    assert [os.environ[name] for name in BACKENDS] == ["lo", "lo"]
    with pytest.raises(ConfigError, match="ib99"):
        use_interface("lo,ib99", spans_nodes=False)
