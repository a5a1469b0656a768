"""Confidence intervals for success rates, and whether two of them differ."""

from __future__ import annotations

import math

Z_95 = 1.959963984540054
"""Standard normal quantile of a two-sided 95 % interval."""


def wilson_interval(successes: int, trials: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval of a binomial proportion, in [0,1].

    No trials know nothing: (0, 1). ValueError unless 0 <= successes <= trials.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"wanted 0 <= successes <= trials, got {successes} of {trials}")
    if trials == 0:
        return 0.0, 1.0
    rate = successes / trials
    spread = z * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    centre = rate + z * z / (2 * trials)
    scale = 1 + z * z / trials
    low, high = (centre - spread) / scale, (centre + spread) / scale
    return max(0.0, low) if successes else 0.0, min(1.0, high) if successes < trials else 1.0


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """McNemar's exact test, two-sided: the probability of a split of the pairs with one success
    that is at least as uneven, were either side equally likely. No such pair: 1.
    """
    if min(only_first, only_second) < 0:
        raise ValueError(f"wanted counts of at least 0, got {only_first} and {only_second}")
    trials, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(trials, k) for k in range(fewer + 1))
    return min(1.0, 2.0 * tail / 2.0**trials)


def fisher_exact(first: tuple[int, int], second: tuple[int, int]) -> float:
    """Fisher's exact test, two-sided, of (successes, trials) twice: the probability of a split at
    least as unlikely, were the rates equal. ValueError for counts that make no sense.
    """
    (a, n), (b, m) = first, second
    if not (0 <= a <= n and 0 <= b <= m):
        raise ValueError(f"wanted successes of at most as many trials, got {first} and {second}")
    successes = a + b
    ways = [
        math.comb(n, k) * math.comb(m, successes - k) if successes - k <= m else 0
        for k in range(min(n, successes) + 1)
    ]
    return sum(way for way in ways if way <= ways[a]) / math.comb(n + m, successes)
