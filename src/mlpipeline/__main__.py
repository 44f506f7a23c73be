"""``python -m mlpipeline``: the command line."""

from mlpipeline.cli import main

main()
