"""During a run: the worker of every rank. No Hydra and no MLflow here."""
