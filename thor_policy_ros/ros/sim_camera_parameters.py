"""How the simulated robot's cameras publish."""

from __future__ import annotations

from thor_policy_ros.ros.parameters import ParameterRow

SIM_CAMERAS = (
    ParameterRow(
        "camera_rate_hz",
        "double",
        30.0,
        "Images per simulated second, each camera",
        "Hz",
        bounds=(1.0, 100.0),
    ),
    ParameterRow(
        "camera_transport",
        "string",
        "raw",
        "Images as Image on camera_NAME/image_raw, or as CompressedImage of this format on "
        "camera_NAME/image_raw/compressed; then raw ones too while somebody listens",
        choices=("raw", "jpeg", "png"),
    ),
    ParameterRow(
        "jpeg_quality",
        "int",
        90,
        "Of camera_transport jpeg; above 95 the images grow and do not get better",
        bounds=(1, 100),
    ),
)
