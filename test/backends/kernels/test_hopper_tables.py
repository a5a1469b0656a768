"""What the ends of Hopper's products take: in its place, and nothing that does not fit."""

from __future__ import annotations

import pytest
import torch
from support.rotation import rotation_of

from thor_policy_ros.backends.kernels.hopper_tables import HEAD_DIM, Tables, tables_of


def test_what_an_end_takes_is_where_it_looks_for_it() -> None:
    places, rotation = torch.zeros(20, 256), rotation_of(2, 30)
    assert tables_of("plain", 256, None, None) == Tables()
    assert tables_of("placed", 256, places, None) == Tables(places.data_ptr(), 20)
    found = tables_of("rotated", 6 * HEAD_DIM // 2, None, rotation)
    pointers = (t.data_ptr() for t in (rotation.sin, *rotation[2:]))
    assert found == Tables(rotation.cos.data_ptr(), 0, *pointers, 2, 2, 30, 30 * HEAD_DIM)


def test_an_end_without_what_it_takes_is_refused() -> None:
    rotation = rotation_of(1, 30)
    for epilogue, features, places, turned, match in (
        ("placed", 256, None, None, "it wants some"),
        ("plain", 256, torch.zeros(2, 256), None, "places are for 'placed'"),
        ("placed", 256, torch.zeros(2, 255), None, r"wanted places f32\[P,256\]"),
        ("placed", 256, torch.zeros(2, 256).bfloat16(), None, r"wanted places f32\[P,256\]"),
        ("rotated", 256, None, None, "it wants one"),
        ("gelu", 256, None, rotation, "a rotation is for 'rotated'"),
        ("rotated", 128, None, rotation, "at most 0 groups"),
        ("rotated", 256, None, rotation._replace(keys=torch.zeros(1, 30, 128)), "wanted keys"),
        ("rotated", 256, None, rotation._replace(keys=torch.zeros(1, 30, 256)), "bfloat16 keys"),
    ):
        with pytest.raises(ValueError, match=match):
            tables_of(epilogue, features, places, turned)  # type: ignore[arg-type]
