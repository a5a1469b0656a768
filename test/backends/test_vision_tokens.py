"""Vision tokens that are kept: the prefix is the one that all cameras would have given."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.golden import TOY, toy_config, toy_model_inputs, toy_noise

from thor_policy_ros.backends.pytorch import PyTorchBackend
from thor_policy_ros.backends.registry import create_backend
from thor_policy_ros.types import F32, KeepsVision, ModelInputs

NOISE = toy_noise()[0].numpy()
ALL = np.ones(3, bool)
ROUNDING = 2e-6  # a batch of two images is summed in another order than one of three


@pytest.fixture
def backend() -> PyTorchBackend:
    made = create_backend("pytorch", TOY, toy_config(), "cpu", "float32")
    assert isinstance(made, PyTorchBackend)
    return made


def seen(*cameras: int) -> ModelInputs:
    """The recorded images, and other ones for these cameras."""
    inputs = replace(toy_model_inputs(), image_mask=ALL)
    images = inputs.images.copy()
    for camera in cameras:
        images[camera] = -images[camera]
    return replace(inputs, images=images)


def actions(backend: PyTorchBackend, inputs: ModelInputs, keep: tuple[int, ...] = ()) -> F32:
    mask = np.isin(np.arange(3), keep)
    prefix = backend.prefill_keeping(inputs, 0.0, mask) if keep else backend.prefill(inputs, 0.0)
    return backend.denoise(prefix, NOISE, 3)


@pytest.mark.parametrize("keep", [(0,), (1, 2), (0, 1, 2)])
def test_kept_cameras_count_as_they_were_and_the_others_as_they_are(backend, keep) -> None:
    actions(backend, seen())
    changed = [camera for camera in range(3) if camera not in keep]
    kept = actions(backend, seen(0, 1, 2), keep)
    whole = actions(backend, seen(*changed))
    assert np.abs(kept - whole).max() < ROUNDING
    if changed:
        assert np.abs(kept - actions(backend, seen())).max() > 100 * ROUNDING


def test_a_camera_may_be_kept_again_and_again(backend) -> None:
    first = actions(backend, seen())
    for _ in range(3):
        again = actions(backend, seen(1), keep=(1,))
    assert np.abs(again - first).max() < ROUNDING


def test_only_what_is_not_kept_is_looked_at(backend, monkeypatch) -> None:
    looked: list[int] = []
    embed = backend.model.embed_image

    def counted(images: torch.Tensor) -> torch.Tensor:
        looked.append(len(images))
        return embed(images)

    monkeypatch.setattr(backend.model, "embed_image", counted)
    actions(backend, seen())
    actions(backend, seen(), keep=(0, 2))
    actions(backend, seen(), keep=(0, 1, 2))
    assert looked == [3, 1]


def test_a_new_prompt_may_keep_all_cameras(backend) -> None:
    actions(backend, seen())
    other = replace(seen(), tokens=seen().tokens[::-1].copy(), token_mask=seen().token_mask[::-1])
    kept = actions(backend, other, keep=(0, 1, 2))
    assert np.abs(kept - actions(backend, other)).max() < ROUNDING


def test_a_camera_that_was_not_there_cannot_be_kept(backend) -> None:
    one_missing = replace(seen(), image_mask=np.array([True, False, True]))
    actions(backend, one_missing)
    with pytest.raises(ValueError, match=r"cameras \[1\] are to be kept.*held \[0, 2\]"):
        actions(backend, seen(), keep=(0, 1))
    with pytest.raises(ValueError, match="held \\[\\]"):
        actions(backend, seen(), keep=(0,))


def test_a_masked_camera_of_keep_is_no_camera(backend) -> None:
    actions(backend, seen())
    one_missing = replace(seen(), image_mask=np.array([True, False, True]))
    kept = actions(backend, one_missing, keep=(0, 1))
    assert np.abs(kept - actions(backend, one_missing)).max() < ROUNDING


def test_who_can_is_known(backend) -> None:
    assert isinstance(backend, KeepsVision)
    pipelined = create_backend("pytorch_pipelined", TOY, toy_config(), "cpu", "float32")
    assert not isinstance(pipelined, KeepsVision), "its prefixes overlap"
