"""What DDP makes of a slow link: its buckets, hooks that compress, and steps that send seldom.

    sudo .venv/bin/python tests/benchmarks/links.py [--hosts 2] [--rounds 3] [--delayed]

Hosts are namespaces of this machine (see shaped_hosts.py), each with one rank of one thread. The
efficiency of a step is the time that the same ranks take for the same step when they send
nothing, in the same round, divided by the step's time. So it does not count that hosts share this
machine's cores and caches, except that messages, too, take their time on them. Bytes are those that
a host's interface has sent, with headers. Whether networks learn as well is not measured here.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

from shaped_hosts import Hosts, Link, enter_own_network, missing_requirements

from orchestrator.config.parse import to_dict
from orchestrator.launch.compose import compose
from tests.benchmarks.rounds import Spread, print_machine, wait_until_quiet

NETWORKS: dict[str, tuple[int, int, list[str]]] = {  # images a pass of a rank, steps, overrides
    "LeNet-5": (64, 20, ["model=lenet5_1998", "data=digits"]),
    "ResNet-18, 32 px": (64, 2, ["model=timm/resnet18", "data=cifar10", "data.url=none"]),
    "AlexNet, half as wide, 64 px": (
        *(8, 3),
        [
            "model=alexnet_2012",
            "data=cifar10",
            "data.url=none",
            "data.image_size=64",
            "+model.kwargs.width=0.5",
        ],
    ),
}
SETTINGS: dict[str, tuple[int, list[str]]] = {  # micro-batches a step of a rank, overrides
    "plain": (1, []),
    "buckets of 1 MiB": (1, ["strategy.bucket_cap_mb=1"]),
    "one bucket": (1, ["strategy.bucket_cap_mb=1000"]),
    "bf16_compress": (1, ["strategy.comm_hook=bf16_compress"]),
    "powersgd": (1, ["strategy.comm_hook=powersgd", "strategy.start_powersgd_step=0"]),
    "4 micro-batches": (4, []),
}
LINKS = [Link(), Link(1000), Link(1000, loss=0.01)]
DELAYED = [Link(1000, delay_ms=1)]  # of other hosts where a cable must be a process
Figures = dict[tuple[str, str, str], list[float]]


class Ranks:
    """A rank on each host, which do the same at the same time."""

    def __init__(self, hosts: Hosts, stack: ExitStack) -> None:
        worker = Path(__file__).with_name("links_rank.py")
        config = config_of([])
        self.processes: list[subprocess.Popen[str]] = []
        for rank in range(hosts.number):
            process = hosts.start(
                rank, [sys.executable, str(worker)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            self.processes.append(process)
            environ = {
                "RANK": str(rank),
                "LOCAL_RANK": "0",
                "WORLD_SIZE": str(hosts.number),
                "LOCAL_WORLD_SIZE": "1",
                "MASTER_ADDR": hosts.address(0),
                "MASTER_PORT": "29500",
                "GLOO_SOCKET_IFNAME": "eth0",
            }
            self._send(process, {"environ": environ, "config": config})
        self._answers()

    def ask(self, request: dict[str, Any]) -> dict[str, float]:
        """Send a request to all ranks; return the greatest of each figure."""
        for process in self.processes:
            self._send(process, request)
        answers = self._answers()
        return {name: max(answer[name] for answer in answers) for name in answers[0]}

    def _send(self, process: "subprocess.Popen[str]", request: dict[str, Any]) -> None:
        assert process.stdin is not None
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()

    def _answers(self) -> list[dict[str, float]]:
        lines = [process.stdout.readline() for process in self.processes if process.stdout]
        if not all(lines):
            raise SystemExit("a rank has ended; what it said is above")
        return [json.loads(line) for line in lines]


def config_of(overrides: list[str]) -> dict[str, Any]:
    common = [
        *("tracking=none", "runtime.device=cpu", "runtime.process_group_timeout_s=60"),
        *("recipe.precision=fp32", "launcher.nproc_per_node=2", "model.published=null"),
    ]
    (composed,) = compose([*overrides, *common])
    return to_dict(composed.config)


def measure_round(
    ranks: Ranks, hosts: Hosts, links: list[Link], network: str, figures: Figures
) -> None:
    """Train a network by each setting in turn, over each link."""
    batch, num_steps, of_network = NETWORKS[network]
    silent_s: dict[int, float] = {}
    for setting, (num_micros, overrides) in SETTINGS.items():
        hosts.shape(Link())
        config = config_of([*of_network, *overrides])
        ranks.ask({"train": config, "batch": batch, "num_micros": num_micros})
        if num_micros not in silent_s:
            answer = ranks.ask({"steps": 4 * num_steps, "is_silent": True})
            silent_s[num_micros] = answer["step_s"]
            figures[network, "silent", str(num_micros)].append(answer["step_s"])
        for link in links:
            hosts.shape(link)
            answer = ranks.ask({"steps": num_steps, "is_silent": False})
            key = (network, setting, str(link))
            figures[key].append(silent_s[num_micros] / answer["step_s"])
            figures[*key[:2], "bytes"].append(answer["bytes"])


def measure(hosts: Hosts, links: list[Link], networks: list[str], num_rounds: int) -> None:
    figures: Figures = defaultdict(list)
    with hosts, ExitStack() as stack:
        ranks = Ranks(hosts, stack)
        for link in links:
            hosts.shape(link)
            ranks.ask({"all_reduces": 3})
            all_reduce_s = ranks.ask({"all_reduces": 20})["all_reduce_s"]
            print(
                f"{link}: made by {hosts.how(link)}, TCP {hosts.congestion_control}, "
                f"a barrier takes {1000 * all_reduce_s:.2f} ms"
            )
        for number in range(num_rounds):
            wait_until_quiet()
            for network in networks:
                measure_round(ranks, hosts, links, network, figures)
            print(f"round {number + 1} is done", flush=True)
    for network in networks:
        print_table(network, hosts.number, links, figures)


def print_table(network: str, num_hosts: int, links: list[Link], figures: Figures) -> None:
    silent = Spread.of([1000 * s for s in figures[network, "silent", "1"]])
    print(
        f"\n{network}, {num_hosts} hosts, {NETWORKS[network][0]} images a pass: {silent} ms alone"
    )
    print(f"| | MB sent a step | {' | '.join(map(str, links))} |")
    print("|---|---|" + "---|" * len(links))
    found = {
        (setting, link): Spread.of([100 * x for x in figures[network, setting, str(link)]])
        for setting, link in itertools.product(SETTINGS, links)
    }
    best = {link: max(SETTINGS, key=lambda name: found[name, link].median) for link in links}
    for setting in SETTINGS:
        sent = Spread.of(figures[network, setting, "bytes"]).median / 1e6
        cells = []
        for link in links:
            text = f"{found[setting, link]} %"
            cells.append(f"**{text}**" if best[link] == setting else text)
        print(f"| {setting} | {sent:.3g} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=[*NETWORKS])
    parser.add_argument("--delayed", action="store_true", help="only links with a delay")
    options = parser.parse_args()
    if missing := missing_requirements():
        raise SystemExit("SKIPPED, nothing was measured. Missing: " + "; ".join(missing))
    print_machine()
    enter_own_network()
    links = DELAYED if options.delayed else LINKS
    hosts = Hosts(options.hosts, is_delayed=options.delayed)
    measure(hosts, links, options.networks, options.rounds)


if __name__ == "__main__":
    main()
