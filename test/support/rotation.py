"""Where the heads of a product go, for the tests of Hopper's products."""

from __future__ import annotations

import torch

from thor_policy_ros.backends.kernels.hopper_tables import HEAD_DIM
from thor_policy_ros.backends.kernels.weights import Rotation, rope_halves


def rotation_of(groups: int, rows: int, device: str = "cpu") -> Rotation:
    tables = rope_halves(rows, HEAD_DIM, torch.device(device))
    start = torch.zeros(1, dtype=torch.int32, device=device)
    keys, values = torch.zeros(2, groups, rows, HEAD_DIM, device=device).bfloat16()
    return Rotation(*tables, start, keys, values)
