"""The parameters of the safety layer: who may stop the robot, and where it may go."""

from __future__ import annotations

from thor_policy_ros.ros.parameters import ParameterRow

_INF = float("inf")

SAFETY = (
    ParameterRow(
        "dry_run",
        "string",
        "auto",
        "Follow chunks and publish everything but commands; auto: only while limits are missing, "
        "never: do not start without them",
        choices=("auto", "always", "never"),
    ),
    ParameterRow(
        "start_enabled",
        "bool",
        True,
        "Move as soon as chunks come; false: wait for ~/enable",
    ),
    ParameterRow(
        "robot_description_file",
        "string",
        "",
        "URDF for limits that are not given here and for the workspace; accelerations have to be "
        "given, no URDF has them",
    ),
    ParameterRow(
        "workspace.link",
        "string",
        "",
        "Link of the URDF that stays in the workspace; empty: no workspace is kept",
    ),
    ParameterRow(
        "workspace.lower",
        "double[]",
        None,
        "Lowest x, y, z of workspace.link in the URDF's root link",
        "m",
        bounds=(-_INF, _INF),
    ),
    ParameterRow(
        "workspace.upper",
        "double[]",
        None,
        "Highest x, y, z of workspace.link in the URDF's root link",
        "m",
        bounds=(-_INF, _INF),
    ),
    ParameterRow(
        "resume_ramp_s",
        "double",
        0.5,
        "Time in which the allowed speed rises from a fifth to the limits whenever motion begins; "
        "0: at once",
        "s",
        bounds=(0.0, 60.0),
        live=True,
    ),
    ParameterRow(
        "max_start_s",
        "double",
        1.0,
        "No start when the chunk wants a joint farther away than it moves in this time at full "
        "speed",
        "s",
        bounds=(0.01, 60.0),
        live=True,
    ),
    ParameterRow(
        "heartbeat_timeout_s",
        "double",
        1.0,
        "The robot is stopped while the policy, once heard, is silent for longer than this",
        "s",
        bounds=(0.1, 60.0),
        live=True,
    ),
)
