"""Sizes told from the shapes of the weights, in either layout."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.golden import TOY, TOY_LEROBOT, toy_config

from thor_policy_ros.model import infer_sizes as module
from thor_policy_ros.model.infer_sizes import infer_sizes
from thor_policy_ros.model.weight_files import CheckpointError, Contents, read_contents


@pytest.mark.parametrize("folder", [TOY, TOY_LEROBOT], ids=lambda p: p.name)
def test_all_sizes_but_the_vision_heads_are_in_the_shapes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module.VISION_HEADS, 40, 4)
    assert infer_sizes(read_contents(folder), 10, 24, 3) == toy_config()


def test_an_unknown_vision_tower_wants_a_config() -> None:
    with pytest.raises(CheckpointError, match=r"tower of width 40 cannot .*known for \[1152\]"):
        infer_sizes(read_contents(TOY), 10, 24, 3)


def test_another_kind_of_checkpoint_is_named_as_such() -> None:
    other = Contents(Path("x"), "openpi", {"weight": (1,)}, {"weight": Path("x")})
    with pytest.raises(CheckpointError, match=r"missing .*k_proj.weight; is this a pi0.5"):
        infer_sizes(other, 10, 24, 3)
