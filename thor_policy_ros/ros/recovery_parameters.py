"""The parameters of coming back after a crash."""

from __future__ import annotations

from thor_policy_ros.ros.parameters import ParameterRow

RECOVERY = (
    ParameterRow(
        "recover_after_s",
        "double",
        0.0,
        "After a failed frame, load and activate again by itself after this time; what only a new "
        "process can mend (a CUDA error, a frame that never ends) ends this one, for "
        "respawn:=true to start it again. 0: stay unconfigured until someone configures it",
        "s",
        bounds=(0.0, 600.0),
    ),
    ParameterRow(
        "inference_timeout_s",
        "double",
        60.0,
        "A frame that takes longer never ends: see recover_after_s",
        "s",
        bounds=(1.0, 3600.0),
    ),
    ParameterRow(
        "state_file",
        "string",
        "",
        "File that keeps the parameters set while the node runs, for its next process; it counts "
        "more than the start values. Empty: none. respawn:=true gives each launch one of its own",
    ),
)
