"""The state of a live switch: whatever the order of events, it is told truly and comes to rest."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from thor_policy_ros.runtime.backend_switch import (
    BackendSwitch,
    Load,
    Respec,
    fits_beside,
    is_variant,
    with_reuse,
)
from thor_policy_ros.types import BackendSpec

SPECS = {
    spec.name: spec
    for spec in (
        BackendSpec("pytorch", "pytorch"),
        BackendSpec("pytorch_pipelined", "pytorch", pipelined=True),
        BackendSpec("fp8_mlp", "fp8_mlp", "fp8", "static", reuse_every=2),
        BackendSpec("fp8_mlp_freq1", "fp8_mlp", "fp8", "static", reuse_every=1),
        BackendSpec("fp8_mlp_dynamic", "fp8_mlp", "fp8", "dynamic", reuse_every=2),
    )
}
NAMES = st.sampled_from(sorted(SPECS))


def variants(one: str, other: str) -> bool:
    return is_variant(SPECS[one], SPECS[other])


def switch(active: str = "pytorch") -> BackendSwitch:
    return BackendSwitch(active, variants)


def test_a_switch_that_succeeds() -> None:
    state = switch()
    assert state.next_step() is None
    state.request("fp8_mlp")
    assert state.next_step() == Load("fp8_mlp")
    assert (state.requested, state.loading, state.active) == ("fp8_mlp", "fp8_mlp", "pytorch")
    assert state.next_step() is None, "one load at a time"
    assert state.loaded()
    state.handed_over()
    assert (state.active, state.loading, state.next_step()) == ("fp8_mlp", "", None)


def test_a_failure_leaves_the_old_backend_and_its_reason() -> None:
    state = switch()
    state.request("fp8_mlp")
    state.next_step()
    state.failed("no FP8 on this GPU")
    assert (state.active, state.requested) == ("pytorch", "fp8_mlp")
    assert state.failure == "no FP8 on this GPU"
    assert state.next_step() is None and not state.lost
    state.request("fp8_mlp")
    assert state.failure == "" and state.next_step() == Load("fp8_mlp"), "asked again: tried again"


def test_the_newest_request_replaces_one_that_loads() -> None:
    state = switch()
    state.request("fp8_mlp")
    state.next_step()
    state.request("pytorch_pipelined")
    assert state.next_step() is None
    assert not state.loaded(), "nobody wants it any more"
    state.dropped()
    assert state.next_step() == Load("pytorch_pipelined")
    state.request("pytorch")
    assert not state.loaded()
    state.dropped()
    assert state.next_step() is None and state.active == "pytorch"


def test_a_superseded_load_that_fails_is_no_failure_of_the_new_request() -> None:
    state = switch()
    state.request("fp8_mlp")
    state.next_step()
    state.request("pytorch_pipelined")
    state.failed("no FP8")
    assert state.failure == ""
    assert state.next_step() == Load("pytorch_pipelined")


def test_variants_of_the_running_engine_need_no_load_even_while_another_loads() -> None:
    state = switch("fp8_mlp")
    state.request("fp8_mlp_freq1")
    assert state.next_step() == Respec("fp8_mlp_freq1")
    assert (state.active, state.next_step()) == ("fp8_mlp_freq1", None)
    state.request("pytorch")
    assert state.next_step() == Load("pytorch")
    state.request("fp8_mlp")
    assert state.next_step() == Respec("fp8_mlp")
    assert not state.loaded()
    state.request("fp8_mlp_dynamic")
    state.dropped()
    assert state.next_step() == Load("fp8_mlp_dynamic"), "other scales are another engine"


def test_after_a_pause_a_failure_loads_the_backend_before() -> None:
    state = switch()
    state.request("fp8_mlp")
    state.next_step()
    state.paused()
    assert state.active == ""
    state.failed("out of memory")
    assert state.next_step() == Load("pytorch") and not state.lost
    assert state.loaded()
    state.handed_over()
    assert (state.active, state.failure) == ("pytorch", "out of memory")
    assert state.next_step() is None


def test_nothing_left_to_load_is_lost_until_asked_again() -> None:
    state = switch()
    state.request("fp8_mlp")
    state.next_step()
    state.paused()
    state.failed("out of memory")
    state.next_step()
    state.failed("file is gone")
    assert state.lost and state.failure == "out of memory; file is gone"
    state.request("pytorch")
    assert not state.lost and state.next_step() == Load("pytorch")


def test_reuse_and_room() -> None:
    assert with_reuse(SPECS["fp8_mlp"], 0).reuse_every == 2
    assert with_reuse(SPECS["fp8_mlp"], 3).reuse_every == 3
    assert fits_beside(125, 100) and not fits_beside(124, 100)


class AnyOrder(RuleBasedStateMachine):
    """Requests and outcomes in any order, with and without pauses."""

    def __init__(self) -> None:
        super().__init__()
        self.state = switch()
        self.verified = {"pytorch"}
        self.under_way = ""

    def advance(self) -> None:
        while (step := self.state.next_step()) is not None:
            if isinstance(step, Load):
                assert not self.under_way, "two loads at once"
                self.under_way = step.name
            else:
                self.verified.add(step.name)

    @rule(name=NAMES)
    def ask(self, name: str) -> None:
        self.state.request(name)
        self.advance()

    @precondition(lambda self: self.under_way and self.state.active)
    @rule()
    def make_room(self) -> None:
        self.state.paused()

    @precondition(lambda self: self.under_way)
    @rule()
    def succeed(self) -> None:
        self.verified.add(self.under_way)
        if self.state.loaded():
            self.state.handed_over()
        else:
            self.state.dropped()
        self.under_way = ""
        self.advance()

    @precondition(lambda self: self.under_way)
    @rule()
    def fail(self) -> None:
        self.state.failed(f"{self.under_way} failed")
        self.under_way = ""
        self.advance()

    @invariant()
    def only_verified_engines_run(self) -> None:
        assert self.state.active in {"", *self.verified}

    @invariant()
    def what_loads_is_told(self) -> None:
        assert self.state.loading == self.under_way

    @invariant()
    def at_rest_the_request_runs_or_its_failure_is_told(self) -> None:
        if not self.under_way:
            assert self.state.active == self.state.requested or self.state.failure
            assert self.state.active or self.state.lost


TestAnyOrder = AnyOrder.TestCase
