"""Which backend is requested, which one loads and which one runs: the state of a live switch.

No thread, no clock and no model here. The owner asks `next_step`, does it and tells how it went:

    request(name) -> next_step() is Load      -> loaded()    -> handed_over() or dropped()
                                              -> failed(reason)
                  -> next_step() is Respec    (same engine, other reuse: nothing to load)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from thor_policy_ros.types import BackendSpec

BESIDE_MARGIN = 1.25
"""Memory to keep free beside two engines, as a factor of one: workspaces and fragmentation."""


@dataclass(frozen=True)
class Load:
    """Load, warm up and verify this backend; the running one stays as it is meanwhile."""

    name: str


@dataclass(frozen=True)
class Respec:
    """The running engine serves this name too, at once."""

    name: str


class BackendSwitch:
    """One thread owns it. At most one load is under way; the newest request counts.

    is_variant: whether two names are one engine that differs in reuse alone.
    requested: the newest request. active: what runs; '' while a pause for memory lasts or after
    nothing could be loaded. loading: '' while nothing does. failure: why the newest request that
    failed did; '' once another one is made.
    """

    def __init__(self, active: str, is_variant: Callable[[str, str], bool]) -> None:
        self._is_variant = is_variant
        self._fallback = active
        self._refused: set[str] = set()
        self.requested = self.active = active
        self.loading = ""
        self.failure = ""

    @property
    def lost(self) -> bool:
        """Nothing runs, and neither the request nor the backend before it can be loaded."""
        return not (self.active or self.loading) and self._target() is None

    def request(self, name: str) -> None:
        """Replaces every earlier request. A name that failed before is tried again."""
        self.requested = name
        self.failure = ""
        self._refused.clear()

    def next_step(self) -> Load | Respec | None:
        """What to do now; a Load counts as begun."""
        target = self._target()
        if target is None:
            return None
        if self.active and self._is_variant(self.active, target):
            self._runs(target)
            return Respec(target)
        if self.loading:
            return None
        self.loading = target
        return Load(target)

    def paused(self) -> None:
        """The running backend was closed to make room for the one that loads."""
        self.active = ""

    def loaded(self) -> bool:
        """The load has succeeded. Whether it is still wanted: hand it over, or drop it."""
        return bool(self.loading) and self.loading == self._target()

    def handed_over(self) -> None:
        """The loaded backend has replaced the running one between two frames."""
        self._runs(self.loading)
        self.loading = ""

    def dropped(self) -> None:
        """The loaded backend was not wanted any more and is closed."""
        self.loading = ""

    def failed(self, reason: str) -> None:
        """The load ended without a backend; whatever runs keeps running."""
        if self.loading in (self.requested, self._fallback):
            self.failure = "; ".join(filter(None, (self.failure, reason)))
            self._refused.add(self.loading)
        self.loading = ""

    def _target(self) -> str | None:
        """The name to bring about: the request, or after a pause the backend before it."""
        if self.requested == self.active:
            return None
        if self.requested not in self._refused:
            return self.requested
        if not self.active and self._fallback not in self._refused:
            return self._fallback
        return None

    def _runs(self, name: str) -> None:
        self.active = self._fallback = name


def is_variant(one: BackendSpec, other: BackendSpec) -> bool:
    """Whether both are the same engine and differ at most in how often the prefix is refilled."""
    return replace(one, name=other.name, reuse_every=other.reuse_every) == other


def with_reuse(spec: BackendSpec, reuse_every: int) -> BackendSpec:
    """The spec with the prefix refilled every `reuse_every` ticks; 0 leaves it as it is."""
    return replace(spec, reuse_every=reuse_every) if reuse_every else spec


def fits_beside(free_bytes: int, one_engine_bytes: int) -> bool:
    """Whether a second engine of that size can be loaded while the first one runs."""
    return free_bytes >= one_engine_bytes * BESIDE_MARGIN
