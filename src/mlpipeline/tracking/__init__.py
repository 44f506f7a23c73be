"""The engine: every record of a run, from the call that makes it to MLflow."""
