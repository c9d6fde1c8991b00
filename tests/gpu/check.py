"""Check Tahoe on one GPU in at most nine minutes: bits, speed, memory. `make test-gpu` runs it.

    python tests/gpu/check.py [--only bits speed ...] [--device cpu --quick]

It needs no network and no MLflow. Each check is a process with a deadline; one that fails stops no
other. The rows go to OUT/gpu.json and OUT/gpu.md, with date and machine; the exit code is 1 if a
check failed or had no time, and 2 without a GPU. On the CPU it shows that the checks work.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bits import check_bits, check_compiled_bits
from isolated import run_isolated
from overhead import measure_overhead
from session import Session, shown
from shards import measure_shards
from speed import measure_compiled, measure_speed

SECTIONS: dict[str, Callable[[Session], None]] = {
    "bits": check_bits,
    "speed": measure_speed,
    "shards": measure_shards,
    "overhead": measure_overhead,
    "compiled bits": check_compiled_bits,
    "compiled speed": measure_compiled,  # what takes longest is last
}
_FACTS = ("section", "check", "status", "seconds")


def main(arguments: Sequence[str]) -> int:
    """Run the sections and write what they found; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny networks, few steps")
    parser.add_argument("--seconds", type=float, default=520, help="the time for all checks")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--out", type=Path, default=Path("build/gpu"))
    options = parser.parse_args(arguments)
    warm_imports()
    if options.device == "cuda" and not has_gpu(options.out):
        print(
            "error: torch sees no GPU here, so nothing is checked. Run this on a machine that has "
            "one; --device cpu --quick shows only that the checks work.",
            file=sys.stderr,
        )
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tahoe-gpu-") as directory:
        session = Session(options.device, options.quick, Path(directory), options.seconds)
        facts = machine(session)
        for name in options.only:
            print(f"{name}, {session.left_s:.0f} s left", flush=True)
            session.section = name
            try:
                SECTIONS[name](session)
            except Exception as error:
                traceback.print_exc()
                session.add(name, "failed", 0, {"problem": repr(error)})
        shutil.copytree(session.directory / "logs", options.out / "logs", dirs_exist_ok=True)
    write(options.out, facts, session)
    bad = [row for row in session.rows if row["status"] in ("failed", "no time")]
    print(f"{len(session.rows)} checks, {len(bad)} failed or without time; {options.out}/gpu.md")
    return 1 if bad else 0


def has_gpu(out: Path) -> bool:
    """Ask torch, in a process of its own: one that has used a GPU cannot be forked."""

    def ask() -> bool:
        import torch

        return torch.cuda.is_available()

    return bool(run_isolated(ask, out / "logs" / "gpu.log", 60).value)


def machine(session: Session) -> dict[str, Any]:
    """Describe the machine; a GPU is asked in a process of its own."""

    def describe() -> dict[str, Any]:
        import torch

        facts = {"torch": torch.__version__, "cuda": torch.version.cuda}
        if session.device == "cuda":
            facts |= {"gpu": torch.cuda.get_device_name(), "gpus": torch.cuda.device_count()}
            facts |= {"cudnn": torch.backends.cudnn.version()}
        return facts

    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    facts = {"date": now, "host": platform.node(), "cpus": os.cpu_count()}
    facts |= {"python": platform.python_version(), "quick": session.is_quick}
    outcome = run_isolated(describe, session.directory / "logs" / "machine.log", 60)
    facts |= outcome.value or {"problem": outcome.problem}
    print(", ".join(f"{key} {value}" for key, value in facts.items()), flush=True)
    return facts


def write(out: Path, facts: dict[str, Any], session: Session) -> None:
    """Write the rows as JSON and as a table."""
    (out / "gpu.json").write_text(json.dumps({"machine": facts, "rows": session.rows}, indent=1))
    lines = [", ".join(f"{key} {value}" for key, value in facts.items()), ""]
    lines += ["| section | check | status | s | figures |", "|---|---|---|---|---|"]
    for row in session.rows:
        figures = ", ".join(f"{k} {shown(v)}" for k, v in row.items() if k not in _FACTS)
        cells = (row["section"], row["check"], row["status"], f"{row['seconds']:.1f}", figures)
        lines.append(f"| {' | '.join(cells)} |")
    (out / "gpu.md").write_text("\n".join(lines) + "\n")


def warm_imports() -> None:
    """Import what every check needs, once, before the first fork."""
    import timm  # noqa: F401
    import torch  # noqa: F401

    import orchestrator.training.train
    import orchestrator.training.worker  # noqa: F401


if __name__ == "__main__":
    sys.path[1:1] = [str(Path(__file__).parents[1] / "support"), str(Path(__file__).parents[2])]
    sys.exit(main(sys.argv[1:]))
