"""The command line, as a user calls it."""

from __future__ import annotations

import subprocess
import sys


def mlpipeline(*arguments):
    """Run a command: its exit code and what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "mlpipeline", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    return done.returncode, done.stdout
