"""One line per framework records a training in MLflow."""
