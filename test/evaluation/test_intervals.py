"""Wilson's interval against published values and its own definition."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thor_policy_ros.evaluation.intervals import Z_95, fisher_exact, mcnemar_exact, wilson_interval


def test_published_values() -> None:
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_bounds_are_where_the_score_test_just_rejects(case: tuple[int, int]) -> None:
    successes, trials = case
    rate = successes / trials
    for bound in wilson_interval(successes, trials):
        if 0 < bound < 1:
            score = (rate - bound) / math.sqrt(bound * (1 - bound) / trials)
            assert abs(score) == pytest.approx(Z_95, rel=1e-6)


def test_no_trials_know_nothing_and_impossible_counts_are_refused() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="got 3 of 2"):
        wilson_interval(3, 2)


def test_mcnemar_against_published_and_enumerated_values() -> None:
    # Fagerland, Lydersen and Laake 2013, BMC Medical Research Methodology 13:91, table 2: 1 and 7
    assert mcnemar_exact(1, 7) == mcnemar_exact(7, 1) == pytest.approx(0.0703, abs=5e-5)
    assert mcnemar_exact(0, 0) == mcnemar_exact(4, 4) == 1.0
    assert mcnemar_exact(0, 5) == pytest.approx(2 / 32)
    with pytest.raises(ValueError, match="got -1 and 2"):
        mcnemar_exact(-1, 2)


@given(st.integers(0, 8), st.integers(0, 8))
def test_mcnemar_is_the_share_of_splits_as_uneven(first: int, second: int) -> None:
    splits = list(itertools.product((0, 1), repeat=first + second))
    uneven = [s for s in splits if abs(2 * sum(s) - len(s)) >= abs(first - second)]
    assert mcnemar_exact(first, second) == pytest.approx(len(uneven) / len(splits))


def test_fisher_against_published_and_enumerated_values() -> None:
    # Fisher 1935, The Design of Experiments: the lady and the tea, 3 of 4 guessed
    assert fisher_exact((3, 4), (1, 4)) == pytest.approx(0.4857, abs=5e-5)
    assert fisher_exact((4, 4), (0, 4)) == pytest.approx(2 / 70)
    assert fisher_exact((5, 5), (7, 7)) == fisher_exact((0, 0), (3, 7)) == 1.0
    with pytest.raises(ValueError, match=r"got \(3, 2\)"):
        fisher_exact((3, 2), (0, 1))


@given(st.integers(0, 5), st.integers(0, 5), st.data())
def test_fisher_is_the_share_of_assignments_at_least_as_unlikely(
    n: int, m: int, data: st.DataObject
) -> None:
    a, b = data.draw(st.integers(0, n)), data.draw(st.integers(0, m))
    chosen = [sum(k < n for k in c) for c in itertools.combinations(range(n + m), a + b)]
    unlikely = [x for x in chosen if chosen.count(x) <= chosen.count(a)]
    assert fisher_exact((a, n), (b, m)) == pytest.approx(len(unlikely) / len(chosen))
