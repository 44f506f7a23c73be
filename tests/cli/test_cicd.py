"""docs/cicd.md, from a shell: every block in order, each command with the exit code that the page gives it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

PAGE = (Path(__file__).parents[2] / "docs" / "cicd.md").read_text("utf-8")


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_walk_through_goes_as_it_says(copy_store):
    """And at its end the registry is as the last line leaves it."""
    copy_store(Path("mlflow.db"), str(Path.cwd() / "mlruns"))
    blocks = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert 9 == len(blocks)
    # In one shell, for its variables. A block is one command, or several of which each must succeed.
    script = ["set -uo pipefail"]
    for block in blocks:
        expected = int(found[1]) if (found := re.search(r"# exit code (\d)$", block, re.MULTILINE)) else 0
        body = f"set -e\n{block}set +e" if expected == 0 else block.rstrip()
        script.append(f"{body}\n[ $? = {expected} ] || {{ echo 'not exit code {expected}' >&2; exit 99; }}")
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        capture_output=True,
        text=True,
        check=False,
        # The couriers that a dozen commands would start have tests of their own.
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "MLPIPELINE_DELIVERY": "thread",
        },
    )
    assert 0 == done.returncode, done.stdout + done.stderr
    client = MlflowClient("sqlite:///mlflow.db")
    assert "1" == str(client.get_model_version_by_alias("tumour-classifier", "champion").version)
    assert 2 == len(client.search_model_versions("name='tumour-classifier'"))
