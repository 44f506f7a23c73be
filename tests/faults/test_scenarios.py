"""Every scenario with every integration that it could matter for: nothing lost, nothing doubled, no stall."""

from __future__ import annotations

import pytest
from harness.page import ROW
from harness.scenarios import SCENARIOS
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
    while outcomes[-1].longer_s > scenario.longer_at_most_s and len(outcomes) < TRIES:
        outcomes.append(attempt(bench, scenario, integration))
    row = {"key": f"{scenario.key} {integration}", "scenario": scenario.key, "integration": integration}
    record_property(ROW, {**row, **outcomes[-1].row()})
    for outcome in outcomes:
        assert {} == dict(outcome.lost), "lost"
        assert {} == dict(outcome.doubled), "doubled"
        assert ([scenario.status] if scenario.status else []) == outcome.statuses
        assert scenario.sync_code == outcome.sync_codes[-1]
        assert outcome.exit_codes[0] == outcome.exit_codes[1], outcome.stderr
        assert outcome.is_same_result
        assert "During handling" not in outcome.stderr
    assert outcomes[-1].longer_s <= scenario.longer_at_most_s
