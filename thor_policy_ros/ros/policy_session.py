"""What the node's parameters make of the loaded policy: cameras, names, the settings of a frame."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from thor_policy_ros.backends.registry import REMOTE
from thor_policy_ros.ros.frame_loop import FrameSettings, PolicyFacts
from thor_policy_ros.ros.inputs import Camera
from thor_policy_ros.ros.parameters import NodeParameters
from thor_policy_ros.ros.reuse_parameters import reuse_rules
from thor_policy_ros.ros.smooth_motion_parameters import injected_latency
from thor_policy_ros.runtime.policy_runner import PolicyRunner
from thor_policy_ros.types import JointLimits

if TYPE_CHECKING:
    from thor_policy_ros.model.config import PolicyConfig
    from thor_policy_ros.runtime.unified_policy import UnifiedPolicy
    from thor_policy_ros.serving.remote_policy import RemotePolicy


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


def frame_settings(parameters: NodeParameters) -> FrameSettings:
    """What the next frame goes by."""
    period_ms = 1e3 / parameters["control_rate_hz"]
    deadline_ms = parameters["deadline_ms"] or period_ms
    return FrameSettings(
        num_steps=parameters["num_denoise_steps"],
        deadline_ms=deadline_ms,
        seed=parameters["seed"],
        rules=reuse_rules(parameters, deadline_ms),
        blending=parameters["chunk_blending"],
        injected=injected_latency(parameters),
    )


def chunking_refusal(
    values: Mapping[str, Any] | NodeParameters, policy: UnifiedPolicy | None
) -> str:
    """Why the loaded policy (None before configure) cannot chunk as wanted, or ''."""
    if policy is None or (values["chunk_blending"], values["rtc_mode"]) != ("rtc", "trained"):
        return ""
    if not policy.config.trained_prefix_rows:
        return (
            f"checkpoint {policy.config.name!r} was not trained with a prefix of actions; "
            "set rtc_mode to 'guided'"
        )
    if not getattr(policy.backend, "takes_clean_rows", False):
        return (
            f"backend {policy.spec.name!r} takes no prefix of clean actions; set rtc_mode to "
            "'guided', or backend to 'pytorch'"
        )
    return ""


def make_runner(
    policy: UnifiedPolicy,
    limits: JointLimits | None,
    clock: Callable[[], float],
    joint_names: Sequence[str],
) -> PolicyRunner:
    """The runner of a policy that runs here, or of one on a server."""
    if policy.spec.engine != REMOTE.engine:
        return PolicyRunner(policy, limits, clock, joint_names=joint_names)
    from thor_policy_ros.serving.remote_policy import RemoteRunner  # with packages of its own

    return RemoteRunner(cast("RemotePolicy", policy), limits, clock, joint_names=joint_names)
