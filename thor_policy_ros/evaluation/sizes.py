"""Where the sizes of a checkpoint's network come from, when it is compared by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from thor_policy_ros.evaluation.recording import Recording
from thor_policy_ros.model.config import Pi05Config, model_config_from_json, policy_config_from_json
from thor_policy_ros.model.infer_sizes import infer_sizes
from thor_policy_ros.model.named_configs import NAMED
from thor_policy_ros.model.weight_files import read_contents


class Sizes(NamedTuple):
    """A config, and where it was found."""

    config: Pi05Config
    source: str


def find_sizes(folder: Path, recording: Recording, named: str | None) -> Sizes:
    """`named` (a file or a named policy), else a config.json with sizes, else the weights.

    LeRobot's and openpi's own config.json name variants rather than sizes: such a file is
    passed over, and the source in the answer says what was taken.
    """
    if named is not None:
        return _named(named)
    for path in (folder / "config.json", recording.folder / "config.json"):
        sizes = _sizes_in(path) if path.is_file() else None
        if sizes is not None:
            return Sizes(sizes, str(path))
    horizon, tokens = recording.noise.shape[1], recording.tokens.shape[1]
    inferred = infer_sizes(read_contents(folder), horizon, tokens, recording.images.shape[1])
    return Sizes(inferred, "the shapes of the weights")


def _named(named: str) -> Sizes:
    if named in NAMED:
        return Sizes(NAMED[named].model, f"named config {named}")
    if not Path(named).is_file():
        raise ValueError(
            f"--config {named!r} is neither a file nor one of: {', '.join(sorted(NAMED))}"
        )
    sizes = _sizes_in(Path(named))
    if sizes is None:
        raise ValueError(
            f"--config {named}: wanted the sizes of the network (vision, language,"
            " action_expert, ...) or a policy config; see config.json of a recorded folder"
        )
    return Sizes(sizes, named)


def _sizes_in(path: Path) -> Pi05Config | None:
    """Sizes, or a policy config that contains them; None for any other JSON object."""
    data: dict[str, Any] = json.loads(path.read_text())
    policy = data.get("policy")
    if isinstance(policy, str) and policy in NAMED:
        return NAMED[policy].model
    if isinstance(policy, Mapping):
        return policy_config_from_json(policy, f"{path}: policy").model
    if isinstance(data.get("model"), Mapping):
        return policy_config_from_json(data, str(path)).model
    if isinstance(data.get("vision"), Mapping):
        return model_config_from_json(data, str(path))
    return None
