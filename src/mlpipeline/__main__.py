"""``python -m mlpipeline``: the command line."""

from mlpipeline.cli import main

if __name__ == "__main__":
    main()
