"""What exists from configure to cleanup: the loaded policy, its inputs and its frame loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from thor_policy_ros.ros.frame_loop import PolicyFacts
from thor_policy_ros.ros.inputs import Camera
from thor_policy_ros.ros.parameters import NodeParameters
from thor_policy_ros.types import Observation

if TYPE_CHECKING:
    from thor_policy_ros.model.config import PolicyConfig
    from thor_policy_ros.runtime.unified_policy import UnifiedPolicy


@dataclass(frozen=True)
class LoadRequest:
    """The parameters that decide what is loaded."""

    backend: str
    checkpoint: str
    policy_config: str
    tokenizer: str
    device: str
    dtype: str
    cpu_threads: int
    num_steps: int

    @staticmethod
    def of(parameters: NodeParameters) -> LoadRequest:
        return LoadRequest(
            backend=parameters["backend"],
            checkpoint=parameters["checkpoint"],
            policy_config=parameters["policy_config"],
            tokenizer=parameters["tokenizer"],
            device=parameters["device"],
            dtype=parameters["dtype"],
            cpu_threads=parameters["cpu_threads"],
            num_steps=parameters["num_denoise_steps"],
        )


def load_policy(request: LoadRequest, say: Callable[[str], None]) -> UnifiedPolicy:
    """Loads, warms up and infers once, in the thread that will own the backend.

    say: told what begins and how long it took. Raises what the policy raises, ValueError for
    a checkpoint that was not named.
    """
    if not request.checkpoint:
        raise ValueError("parameter checkpoint is empty; name the folder with model.safetensors")
    begun_s = time.perf_counter()
    say(f"importing the engine of backend {request.backend!r}")
    import torch

    from thor_policy_ros.runtime.unified_policy import InferenceRefusedError, UnifiedPolicy

    if request.cpu_threads:
        torch.set_num_threads(request.cpu_threads)
    say(f"loading {Path(request.checkpoint).name} ({_weights_mb(request.checkpoint):.1f} MB)")
    policy = UnifiedPolicy(
        request.checkpoint,
        request.backend,
        config=request.policy_config or None,
        tokenizer=request.tokenizer or None,
        device=request.device or None,
        dtype=request.dtype or None,
    )
    try:
        say("warming up")
        policy.warmup()
        policy.infer(blank_observation(policy.config), num_steps=request.num_steps)
    except BaseException as error:
        policy.close()
        if isinstance(error, InferenceRefusedError):
            raise ValueError(f"the checkpoint failed its trial: {error}") from error
        raise
    say(f"ready after {time.perf_counter() - begun_s:.1f} s")
    return policy


def blank_observation(config: PolicyConfig) -> Observation:
    """Black images and a zero state, to try a policy with."""
    size = config.model.vision.image_size
    images = {slot: np.zeros((size, size, 3), np.uint8) for slot in config.camera_slots}
    return Observation(images, np.zeros(config.state_dim, np.float32), "", 0.0)


def _weights_mb(checkpoint: str) -> float:
    return sum(file.stat().st_size for file in Path(checkpoint).glob("*.safetensors")) / 1e6


def cameras_of(parameters: NodeParameters) -> tuple[Camera, ...]:
    return tuple(
        Camera(
            name=name,
            topic=parameters[f"camera.{name}.topic"],
            slot=parameters[f"camera.{name}.slot"] or name,
            compressed=parameters[f"camera.{name}.transport"] == "compressed",
            rotate_180=parameters[f"camera.{name}.rotate_180"],
        )
        for name in parameters["cameras"]
    )


def check_cameras(cameras: Sequence[Camera], config: PolicyConfig) -> None:
    """Raises ValueError for a camera that feeds no input of the checkpoint."""
    for camera in cameras:
        if camera.slot not in config.camera_slots:
            raise ValueError(
                f"camera.{camera.name}.slot is {camera.slot!r}; the checkpoint's inputs are: "
                + ", ".join(config.camera_slots)
            )


def facts_of(parameters: NodeParameters, policy: UnifiedPolicy) -> PolicyFacts:
    """Checks the joint names against the checkpoint. Raises ValueError saying what to set."""
    config = policy.config
    joint_names = parameters["joint_names"]
    wants_state = config.state_in_prompt or any(config.relative_actions)
    if len(joint_names) != config.state_dim and (joint_names or wants_state):
        raise ValueError(
            f"joint_names has {len(joint_names)} names; checkpoint {config.name!r} wants a state "
            f"of {config.state_dim}: name its joints in that order"
        )
    action_names = parameters["action_names"] or joint_names
    if len(action_names) != config.action_dim:
        raise ValueError(
            f"action_names has {len(action_names)} names; checkpoint {config.name!r} gives "
            f"{config.action_dim} actions: name the joint that each commands"
        )
    return PolicyFacts(policy.spec.name, tuple(action_names), config.state_dim)
