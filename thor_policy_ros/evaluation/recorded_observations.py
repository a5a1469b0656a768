"""Observations of a robot in one safetensors file, to calibrate with.

`image.SLOT` u8[N,H,W,3] RGB for each camera, `state` f32[N,S] in robot units; the file's metadata
has `prompts`, a JSON list of N instructions, or of one for all.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from thor_policy_ros.types import Observation

IMAGE = "image."


def write_observations(path: Path, observations: Sequence[Observation]) -> None:
    """All must have the same cameras and sizes; stamps are not kept."""
    slots = observations[0].images
    arrays = {f"{IMAGE}{s}": np.stack([o.images[s] for o in observations]) for s in slots}
    arrays["state"] = np.stack([o.state for o in observations])
    prompts = json.dumps([o.prompt for o in observations])
    save_file(arrays, path, metadata={"prompts": prompts})


def read_observations(path: Path) -> tuple[Observation, ...]:
    """ValueError says what is missing or does not fit together."""
    try:
        with safe_open(path, framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            prompts = json.loads((file.metadata() or {}).get("prompts", "[]"))
    except SafetensorError as error:
        raise ValueError(f"cannot read {path} as safetensors: {error}") from error
    images = {name[len(IMAGE) :]: a for name, a in arrays.items() if name.startswith(IMAGE)}
    if not images or "state" not in arrays or not prompts:
        raise ValueError(
            f"{path} wants arrays {IMAGE}SLOT and state, and prompts in its metadata;"
            f" it holds {sorted(arrays)} and {len(prompts)} prompts"
        )
    count = len(arrays["state"])
    prompts = prompts * count if len(prompts) == 1 else prompts
    lengths = {**{name: len(a) for name, a in images.items()}, "prompts": len(prompts)}
    wrong = {name: length for name, length in lengths.items() if length != count}
    if wrong:
        raise ValueError(f"{path}: {count} states but {wrong}; every array wants as many frames")
    return tuple(
        Observation({s: a[n] for s, a in images.items()}, arrays["state"][n], prompts[n], float(n))
        for n in range(count)
    )
