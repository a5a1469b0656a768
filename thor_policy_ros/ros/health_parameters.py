"""From which figures on /diagnostics warns: the policy node's parameters, all of them live."""

from __future__ import annotations

from thor_policy_ros.ros.parameters import ParameterRow

HYSTERESIS = ParameterRow(
    "diagnostics_hysteresis",
    "double",
    0.1,
    "A warning about a figure ends when it is this share of the threshold back on the good "
    "side; 0: at the threshold itself",
    bounds=(0.0, 0.9),
    live=True,
)

HEALTH = (
    HYSTERESIS,
    ParameterRow(
        "deadline_error_ratio",
        "double",
        0.5,
        "Diagnostics show an error when more than this share of recent frames missed the deadline",
        bounds=(0.0, 1.0),
        live=True,
    ),
    ParameterRow(
        "input_age_warn_ratio",
        "double",
        0.8,
        "Diagnostics warn when an input is older than this share of max_input_age_s",
        bounds=(0.0, 1.0),
        live=True,
    ),
    ParameterRow(
        "input_rate_warn_ratio",
        "double",
        0.8,
        "Diagnostics warn when an input comes less often than this share of control_rate_hz; 0: "
        "never",
        bounds=(0.0, 10.0),
        live=True,
    ),
    ParameterRow(
        "frozen_camera_after_s",
        "double",
        2.0,
        "A camera that sends the very same picture with new stamps for so long is frozen; 0: never "
        "(a simulated one has no noise, and before a still scene seems frozen)",
        "s",
        bounds=(0.0, 60.0),
        live=True,
    ),
    ParameterRow(
        "frozen_camera_action",
        "string",
        "warn",
        "While a camera is frozen: warn in diagnostics, or stop: no chunk, with that reason, until "
        "its pictures change again",
        choices=("warn", "stop"),
        live=True,
    ),
    ParameterRow(
        "gpu_temperature_warn_c",
        "double",
        85.0,
        "Diagnostics warn when the GPU is hotter (with the package nvidia-ml-py)",
        "degC",
        bounds=(0.0, 150.0),
        live=True,
    ),
    ParameterRow(
        "gpu_temperature_error_c",
        "double",
        95.0,
        "Diagnostics show an error when the GPU is hotter",
        "degC",
        bounds=(0.0, 150.0),
        live=True,
    ),
    ParameterRow(
        "gpu_memory_warn_ratio",
        "double",
        0.95,
        "Diagnostics warn when more than this share of the GPU's memory is in use",
        bounds=(0.0, 1.0),
        live=True,
    ),
)
