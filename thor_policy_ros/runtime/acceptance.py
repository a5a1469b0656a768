"""Whether a chunk may be executed: its form, its joints and its time. Pure functions."""

from __future__ import annotations

import math

import numpy as np

from thor_policy_ros.types import ActionChunk


def form_refusal(
    chunk: ActionChunk, chunk_joints: tuple[str, ...], joint_names: tuple[str, ...]
) -> str:
    """Why the chunk is no trajectory of the joints `joint_names`, or ''.

    chunk_joints: names of the chunk's columns, in any order.
    """
    return (
        _joint_refusal(chunk_joints, joint_names)
        or _shape_refusal(chunk, len(chunk_joints))
        or _value_refusal(chunk, chunk_joints)
    )


def time_refusal(
    chunk: ActionChunk,
    now_s: float,
    newest_observed_at_s: float,
    max_age_s: float,
    max_future_s: float,
) -> str:
    """Why the chunk does not belong to `now_s`, or ''.

    newest_observed_at_s: of the chunk being executed; an older one is out of order.
    """
    age_s = now_s - chunk.observed_at_s
    if not math.isfinite(age_s):
        return f"chunk wants a finite observed_at in s, got {chunk.observed_at_s}"
    if age_s < -max_future_s:
        return (
            f"chunk was observed {-age_s:.3f} s in the future (at most {max_future_s:g} s); "
            "compare the clocks of the cameras, the policy and the executor"
        )
    if age_s > max_age_s:
        return (
            f"chunk was observed {age_s:.3f} s ago (at most {max_age_s:g} s); "
            "make the policy faster or raise max_chunk_age_s"
        )
    if chunk.ends_at_s <= now_s:
        return (
            f"chunk ran out {now_s - chunk.ends_at_s:.3f} s ago: {chunk.horizon} rows of "
            f"{chunk.dt_s:g} s do not cover its delay of {age_s:.3f} s; make the policy faster"
        )
    older_s = newest_observed_at_s - chunk.observed_at_s
    if older_s > 0:
        return (
            f"chunk was observed {older_s:.3f} s before the one being executed: out of order; "
            "check that one policy alone publishes"
        )
    return ""


def _joint_refusal(chunk_joints: tuple[str, ...], joint_names: tuple[str, ...]) -> str:
    missing = [name for name in joint_names if name not in chunk_joints]
    if missing:
        return (
            f"chunk lacks the joints {missing}, it has {list(chunk_joints)}; "
            "give policy and executor the same joint names"
        )
    if len(chunk_joints) != len(joint_names):
        return (
            f"chunk wants the joints {list(joint_names)}, each once, got {list(chunk_joints)}; "
            "give policy and executor the same joint names"
        )
    return ""


def _shape_refusal(chunk: ActionChunk, width: int) -> str:
    if chunk.actions.ndim != 2 or chunk.actions.shape[1] != width:
        return (
            f"chunk wants actions [H,{width}], one column per joint, "
            f"got {list(chunk.actions.shape)}; check the policy's action_dim"
        )
    if chunk.horizon < 2:
        return f"chunk wants at least 2 rows, got {chunk.horizon}; check the policy's horizon"
    return ""


def _value_refusal(chunk: ActionChunk, chunk_joints: tuple[str, ...]) -> str:
    if not (math.isfinite(chunk.dt_s) and chunk.dt_s > 0):
        return f"chunk wants a positive dt in s, got {chunk.dt_s}; check the policy's action_dt_s"
    finite = np.isfinite(chunk.actions)
    if not finite.all():
        row, column = (int(i) for i in np.argwhere(~finite)[0])
        return (
            f"chunk row {row}, joint {chunk_joints[column]!r} wants a finite position, "
            f"got {chunk.actions[row, column]}; check the policy"
        )
    return ""
