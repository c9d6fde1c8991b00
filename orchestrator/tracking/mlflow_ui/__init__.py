"""MLflow's pages: serve them, link to them."""

import orchestrator.tracking.mlflow_store  # noqa: F401  (its settings come before MLflow)
