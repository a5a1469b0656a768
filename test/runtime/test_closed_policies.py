"""A policy that is closed gives its memory back at once: live switches must not wait for gc."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.arm_checkpoint import write_arm_checkpoint

from thor_policy_ros.backends.registry import BACKENDS, availability
from thor_policy_ros.runtime.unified_policy import UnifiedPolicy
from thor_policy_ros.runtime.verification_inputs import synthetic_observations

AVAILABLE = [name for name in BACKENDS if not availability(name)]
WITH_MEMORY = (torch.Tensor, torch.nn.Parameter)  # an export's fake tensors have none
SMALL = 0.05
"""Of the weights; rotary tables and the like may stay as long as the closed object does."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_arm_checkpoint(tmp_path_factory.mktemp("closed"))


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def tensor_bytes() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own deprecated names, which gc walks over
        held = {
            thing.untyped_storage().data_ptr(): thing.untyped_storage().nbytes()
            for thing in gc.get_objects()
            if type(thing) in WITH_MEMORY and thing.device.type == "cpu"
        }
    return sum(held.values())


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("name", AVAILABLE)
def test_nothing_is_left_for_the_garbage_collector(name: str, checkpoint: Path) -> None:
    def used() -> UnifiedPolicy:
        policy = UnifiedPolicy(checkpoint, name, device="cpu")
        policy.warmup()
        policy.infer(synthetic_observations(policy.config, 1)[0], num_steps=2, seed=0)
        return policy

    used().close()  # what a library makes once
    before = tensor_bytes()
    policy = used()
    weights = tensor_bytes() - before
    assert weights > 100_000
    policy.close()
    assert tensor_bytes() - before < SMALL * weights, "closed, and still held"
    gone = weakref.ref(policy.backend)
    del policy
    assert gone() is None, "the policy is part of a cycle"
