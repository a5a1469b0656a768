"""A peer that cannot load its weights."""

PACKAGES = ("json",)


def load(**settings):
    raise ValueError("these weights are not mine")
