"""What all commands have in common: help at once, --json, exit codes that are written down."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from mlpipeline.cli import console, main
from mlpipeline.tracking import doctor

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text("utf-8")
PRINTS_JSON_ONLY = {("config", "schema")}
HEAVY = {
    *("alembic", "mlflow", "numpy", "pandas", "prometheus_client", "requests", "rich", "sqlalchemy", "yaml"),
    # A fifth of what help takes, together.
    *("logging", "pathlib", "subprocess", "webbrowser"),
}


def commands(group=main, path=()):
    """Every command with the words that call it."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


@pytest.mark.process
@pytest.mark.parametrize("words", [(), *(words for words, _ in commands())], ids=" ".join)
def test_help_comes_at_once_and_loads_nothing_heavy(words):
    """Under 0.3 s of CPU, with the interpreter's own start; the best of three on a busy machine."""
    program = "import sys, json; from mlpipeline.cli import main\n"
    program += "try: main()\nexcept SystemExit: print(json.dumps(list(sys.modules)))"
    taken_s = []
    for _ in range(3):
        before = os.times()
        done = subprocess.run(
            [sys.executable, "-c", program, *words, "--help"], capture_output=True, text=True, check=True
        )
        after = os.times()
        taken_s.append(
            after.children_user + after.children_system - before.children_user - before.children_system
        )
        if taken_s[-1] < 0.3:
            break
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}
    assert "mlpipeline" in loaded
    assert set() == loaded & HEAVY
    assert 0.3 > min(taken_s)


@pytest.mark.parametrize(
    ("words", "command"),
    list(commands()),
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_every_command_takes_json_and_explains_each_option(words, command):
    """For programs, and for people."""
    options = {name for parameter in command.params for name in parameter.opts}
    assert "--json" in options or words in PRINTS_JSON_ONLY
    assert command.help
    assert [] == [
        option.name for option in command.params if isinstance(option, click.Option) and not option.help
    ]


def test_the_exit_codes_of_the_page_are_those_of_the_code():
    """Each with its meaning."""
    rows = re.findall(r"^\| (\d) \| (.*) \|$", PAGE, re.MULTILINE)
    assert {str(code): text for code, text in console.exit_codes().items()} == dict(rows)


def test_every_check_of_the_doctor_is_on_the_page():
    """In the order in which they are made."""
    table = PAGE[PAGE.index("| Check |") : PAGE.index("What a failure makes")]
    listed = re.findall(r"^\| `(\w+)`", table, re.MULTILINE)
    assert sorted(listed) == sorted(name for name, _, _ in doctor.CHECKS)
    assert f"differ by more than {doctor.SKEW_S:g} seconds" in PAGE
    assert f"says nothing after {doctor.TIMEOUT_S:g}." in PAGE


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("15m", 900), ("12h", 43_200), ("90d", 7_776_000), ("4w", 2_419_200), ("0.5s", 0.5)],
)
def test_time_spans_are_read(text, seconds):
    """In seconds."""
    assert seconds == console.DURATION.convert(text, None, None)


@pytest.mark.parametrize("text", ["", "90", "d", "90 days", "-1d", "1d2h"])
def test_what_is_no_time_span_is_refused(text):
    """With the spelling that is accepted."""
    with pytest.raises(click.BadParameter, match="write 30s, 15m, 12h, 90d or 4w"):
        console.DURATION.convert(text, None, None)
