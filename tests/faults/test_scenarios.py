"""Every scenario with every integration that it could matter for: nothing lost, nothing doubled, no stall."""

from __future__ import annotations

import pytest
from harness.page import ROW
from harness.scenarios import LONGER_AT_MOST_S, SCENARIOS
from harness.trying import attempt

TRIES = 3

CASES = [
    pytest.param(scenario, integration, id=f"{scenario.key}-{integration}")
    for scenario in SCENARIOS
    for integration in scenario.integrations
]


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.server
@pytest.mark.process
@pytest.mark.parametrize(("scenario", "integration"), CASES)
def test_nothing_is_lost_or_doubled(scenario, integration, bench, record_property):
    """And the training is what it would have been without us."""
    outcomes = [attempt(bench, scenario, integration)]
    # A shared machine makes some trainings seconds longer by itself; a fault would make each of them longer.
    while len(outcomes) < TRIES and (
        outcomes[-1].longer_s > scenario.longer_at_most_s or outcomes[-1].longest_step_s > LONGER_AT_MOST_S
    ):
        outcomes.append(attempt(bench, scenario, integration))
    row = {"key": f"{scenario.key} {integration}", "scenario": scenario.key, "integration": integration}
    record_property(ROW, {**row, **outcomes[-1].row()})
    for outcome in outcomes:
        assert {} == dict(outcome.lost), "lost"
        assert {} == dict(outcome.doubled), "doubled"
        assert ([scenario.status] if scenario.status else []) == outcome.statuses
        assert [] == outcome.open_children
        assert scenario.sync_code == outcome.sync_codes[-1]
        assert outcome.exit_codes[0] == outcome.exit_codes[1], outcome.stderr
        assert outcome.is_same_result
        assert "During handling" not in outcome.stderr
        if scenario.strike == "exception":
            assert "Strike: the user's own" == last_of_the_users(outcome.stderr)
        if scenario.drops:
            assert outcome.dropped > 0
            assert (outcome.dropped if scenario.status else None) == outcome.tagged
    assert outcomes[-1].longest_step_s <= LONGER_AT_MOST_S
    assert outcomes[-1].longer_s <= scenario.longer_at_most_s


def last_of_the_users(stderr):
    """The last line but for the one that a root run prints when it ends."""
    lines = [line for line in stderr.splitlines() if line and not line.startswith("mlpipeline: ")]
    return lines[-1].removeprefix("__main__.")
