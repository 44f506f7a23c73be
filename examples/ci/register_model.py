"""What a CI job runs to register: ``python register_model.py --run-id …`` is ``mlpipeline register``."""

from __future__ import annotations

import sys

from mlpipeline.cli import main

main(["register", *sys.argv[1:]])
