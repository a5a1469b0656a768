"""Units of the Aloha runtime against those that the pi base models were trained on.

State and actions are [left joints 6, left gripper, right joints 6, right gripper]. Three
joints of each arm turn the other way, and grippers are scaled differently: the Aloha
runtime reports a linear opening and takes a normalised angle, the model sees angles.
Constants are those of the Aloha and Interbotix drivers, as openpi uses them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]

JOINT_SIGNS = np.array([1, -1, -1, 1, 1, 1, 1] * 2, np.float64)
GRIPPERS = (6, 13)
OPENING_M = (0.01844, 0.05800)  # of the fingers, closed and open
ARM_M, HORN_M = 0.036, 0.022  # linkage between the servo's horn and the fingers
MODEL_RAD = (0.5476, 1.6296)  # encoder counts 2405 and 3110 of 4096, zero at 2048
COMMAND_RAD = (-0.6213, 1.4910)


def state_to_model(state: npt.NDArray[Any]) -> F64:
    """f[14] as the Aloha runtime reports it -> as the model was trained."""
    converted = JOINT_SIGNS * state
    grippers = list(GRIPPERS)
    converted[grippers] = _gripper_angle(converted[grippers])
    return converted


def actions_to_robot(actions: npt.NDArray[Any]) -> F64:
    """f[H,14] from the model -> as the Aloha runtime takes them."""
    converted = JOINT_SIGNS * actions
    grippers = list(GRIPPERS)
    low, high = COMMAND_RAD
    converted[:, grippers] = (converted[:, grippers] + MODEL_RAD[0] - low) / (high - low)
    return converted


def actions_to_model(actions: npt.NDArray[Any]) -> F64:
    """The inverse of `actions_to_robot`."""
    converted = JOINT_SIGNS * actions
    grippers = list(GRIPPERS)
    low, high = COMMAND_RAD
    converted[:, grippers] = converted[:, grippers] * (high - low) + low - MODEL_RAD[0]
    return converted


def _gripper_angle(opening: F64) -> F64:
    """Normalised linear opening to the normalised servo angle."""
    metres = opening * (OPENING_M[1] - OPENING_M[0]) + OPENING_M[0]
    sine = (HORN_M**2 + metres**2 - ARM_M**2) / (2 * HORN_M * metres)
    angle = np.arcsin(np.clip(sine, -1.0, 1.0))
    return (angle - MODEL_RAD[0]) / (MODEL_RAD[1] - MODEL_RAD[0])
