"""The profiler traces the chosen steps and no others."""

import json
from pathlib import Path

import pytest
import torch

from orchestrator.training.monitoring.profiler import profile_steps


@pytest.mark.filterwarnings("ignore:Profiler won't be using warmup")
@pytest.mark.parametrize(
    ("steps", "first_step", "traced"),
    [
        ((2, 3), 0, [2, 3]),
        ((1, 9), 3, [4, 5]),  # resumed inside of them, and ended before they do
        ((2, 3), 3, []),  # resumed after them
        (None, 0, []),
    ],
)
def test_the_chosen_steps_are_traced(
    tmp_path: Path, steps: tuple[int, int] | None, first_step: int, traced: list[int]
) -> None:
    file = tmp_path / "profile.json"
    with profile_steps(steps, first_step, file) as end_step:
        for step in range(first_step, 5):
            with torch.profiler.record_function(f"my step {step + 1}"):
                torch.ones(4).sum()
            end_step()
    events = json.loads(file.read_text())["traceEvents"] if file.exists() else []
    names = {event["name"] for event in events if str(event.get("name")).startswith("my step")}
    assert names == {f"my step {number}" for number in traced}
