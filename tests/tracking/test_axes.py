"""Counted steps: whatever is given and counted, and in which order, a counted name goes on from its own last step."""

from __future__ import annotations

from hypothesis import example, given, settings, strategies as st

from mlpipeline.tracking.journal import Axes

KEY_SETS = [("a",), ("b",), ("a", "b"), ("b", "c"), ("c", "a", "b"), ("d",), ("d", "c"), ("a", "a")]
calls = st.lists(
    st.tuples(st.sampled_from(KEY_SETS), st.none() | st.integers(-2, 6), st.integers(0, 3)), max_size=40
)


@settings(max_examples=400, deadline=None)
@given(calls)
@example([(("a",), None, 0)] * 3 + [(("b",), None, 0)] * 3 + [(("a", "b"), None, 0)])
def test_a_counted_name_goes_on_from_its_last_step(calls):
    """Beside a table that holds the last step of each name; and no point of a name is there twice."""
    axes, last, points, clock_ms = Axes(), {}, set(), 0
    for names, step, ms in calls:
        key_set, clock_ms = axes.key_set(names), clock_ms + ms
        if step is None:
            expected = []
            for name in names:
                last[name] = last.get(name, -1) + 1
                expected.append(last[name])
            steps, at_ms = axes.count_on(key_set, clock_ms)
            assert expected == steps
            new = {(name, step, at_ms) for name, step in zip(names, expected, strict=True)}
        else:
            if not key_set.is_given:
                axes.give(key_set)
            at_ms = key_set.settle(step, clock_ms)
            last |= {name: max(last.get(name, -1), step) for name in names}
            new = {(name, step, at_ms) for name in names}
        assert not points & new
        points |= new
