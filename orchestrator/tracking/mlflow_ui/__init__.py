"""MLflow's pages: serve them, link to them."""
