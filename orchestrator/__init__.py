"""Config -> run directory -> processes -> the training loop -> checkpoints and metrics."""

from orchestrator.import_guard import check_not_shadowed

check_not_shadowed()
