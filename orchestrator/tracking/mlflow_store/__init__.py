"""Write runs to MLflow, and read them back.

The settings below come before any import of MLflow, which reads them when it is imported or when it
sends. Its own retries block for minutes on a dead server and may repeat a request that created a
run; the shipper retries itself, knowing what it sends.
https://mlflow.org/docs/latest/api_reference/python_api/mlflow.environment_variables.html
"""

import os

os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "20"
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # compute nodes are often offline
