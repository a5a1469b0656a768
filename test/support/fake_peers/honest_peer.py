"""A peer that gives its noise back, and prints where a peer must not."""

import numpy as np

PACKAGES = ("json",)


def load(checkpoint, sizes, device, dtype, compile, num_steps):
    print("a peer prints what it likes")
    return Honest(num_steps)


class Honest:
    def __init__(self, num_steps):
        self._num_steps = num_steps

    def actions(self, arrays):
        print("and again")
        return np.asarray(arrays["noise"]) * self._num_steps
