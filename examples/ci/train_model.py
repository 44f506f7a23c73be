"""What a CI job runs to train: ``python train_model.py --config production.yaml`` is ``mlpipeline train``."""

from __future__ import annotations

import sys

from mlpipeline.cli import main

main(["train", *sys.argv[1:]])
