"""The arithmetic of a run that is nowhere, for tests of what is a function of the step."""

from dataclasses import replace
from typing import Any

from orchestrator.run.plan import Plan

_TEN_STEPS_AN_EPOCH = Plan(
    num_train=1000,
    num_val=100,
    num_classes=10,
    world_size=1,
    global_batch_size=100,
    num_lanes=1,
    num_micro_batches=1,
    steps_per_epoch=10,
    num_steps=100,
    evaluate_every_steps=10,
    save_every_steps=None,
    save_after_eval=False,
)


def plan(**changes: Any) -> Plan:
    """Return a plan of ten epochs of ten steps each, or another."""
    return replace(_TEN_STEPS_AN_EPOCH, **changes)
