"""Nobody is let in: private files under any umask, planted links, and secrets that are written nowhere."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from sklearn.linear_model import LinearRegression

from mlpipeline import MLflowConfig
from mlpipeline.tracking.opening import open_run

UMASKS = (0, 0o077, 0o177)


@pytest.mark.parametrize("umask", UMASKS, ids=oct)
def test_all_in_the_home_is_private_under_any_umask(store_uri, home, umask):
    """Journals, texts, tables, copies of the user's files and models: files 0600, folders 0700."""
    folder = Path("theirs")
    (folder / "below").mkdir(parents=True)
    for path in (folder / "a.csv", folder / "below" / "b.csv"):
        path.write_text("1,2")
        path.chmod(0o644)
    model = LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0])
    before = os.umask(umask)
    try:
        run = open_run(MLflowConfig(tracking_uri=store_uri, delivery="offline"))
        run.log_text("fits", "note.txt")
        run.log_table({"a": [1]}, "table.json")
        run.log_artifact(folder)
        run.log_artifact(folder / "a.csv")
        run.log_model(model)
        run.end()
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (home, *home.rglob("*"))}
    assert 15 < len(modes)
    assert {path: 0o700 if path.is_dir() else 0o600 for path in modes} == modes


@pytest.mark.parametrize("inner", ["", "runs", "dead", "done"], ids=lambda inner: inner or "home")
@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can give a link away")
def test_a_link_that_somebody_planted_is_refused(store_uri, home, tmp_path, caplog, inner):
    """It costs the records, which is told; nothing is written where it leads, and no courier starts there."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    planted = home / inner if inner else home
    planted.parent.mkdir(exist_ok=True)
    planted.symlink_to(theirs)
    os.chown(planted, 65534, 65534, follow_symlinks=False)
    run = open_run(MLflowConfig(tracking_uri=store_uri))
    run.log_metrics({"loss": 0.5})
    run.end()
    assert [] == list(theirs.iterdir())
    assert 2 == run.counts().dropped
    assert any("belongs to another user (uid 65534)" in message for message in caplog.messages)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can give a folder away")
def test_a_home_of_somebody_else_is_refused(store_uri, home, caplog):
    """Who owns the folder could read the journals, and lay a module where the courier starts."""
    home.mkdir()
    os.chown(home, 65534, 65534)
    run = open_run(MLflowConfig(tracking_uri=store_uri))
    run.end()
    assert [] == list(home.iterdir())
    assert 1 == run.counts().dropped
    assert any("belongs to another user (uid 65534)" in message for message in caplog.messages)


@pytest.mark.parametrize("of_run", [True, False], ids=["run", "spool"])
def test_a_link_in_place_of_a_runs_folders_is_not_followed(store_uri, home, tmp_path, of_run):
    """Neither the run's own nor its spool: nothing arrives where it leads, and the records count as dropped."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    run = open_run(MLflowConfig(tracking_uri=store_uri, delivery="offline"))
    folder = home / "runs" / run.uid
    if of_run:
        run.end()
        folder.rename(tmp_path / "away")
        folder.symlink_to(theirs)
        run.resume()
    else:
        (folder / "spool").symlink_to(theirs)
    run.log_text("fits", "note.txt")
    assert [] == list(theirs.iterdir())
    assert 1 == run.counts().dropped
    run.end()


def test_a_link_of_the_users_own_may_lead_to_a_larger_disk(store_uri, home, tmp_path, deliver):
    """Only those of others are refused."""
    (tmp_path / "large").mkdir()
    home.symlink_to(tmp_path / "large")
    run = open_run(MLflowConfig(tracking_uri=store_uri, delivery="offline"))
    run.end()
    deliver()
    assert (1, 0) == (run.counts().delivered, run.counts().dropped)
