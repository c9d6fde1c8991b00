"""Config -> run directory -> processes -> the training loop -> checkpoints and metrics."""

from orchestrator.layout import check_not_shadowed

check_not_shadowed()
