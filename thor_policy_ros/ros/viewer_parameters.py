"""The parameters of the node that shows chunks to people."""

from __future__ import annotations

from thor_policy_ros.ros.parameters import ParameterRow

VIEWER = (
    ParameterRow(
        "robot_description_file",
        "string",
        "",
        "URDF for the path of the tool: a path, or the name of one in the package's "
        "config/viewers; empty: topic robot_description",
    ),
    ParameterRow(
        "tip_link",
        "string",
        "",
        "Link of the URDF whose path is shown; empty: none, the joint trajectory alone",
    ),
    ParameterRow(
        "frame_id",
        "string",
        "",
        "Frame of path and markers; empty: the URDF's root link",
    ),
    ParameterRow(
        "camera_topic",
        "string",
        "camera_base/image_raw",
        "Camera whose image is annotated; empty: none",
    ),
    ParameterRow(
        "camera_transport",
        "string",
        "raw",
        "Messages on camera_topic: sensor_msgs Image (raw) or CompressedImage",
        choices=("raw", "compressed"),
    ),
    ParameterRow(
        "camera_info_topic",
        "string",
        "camera_base/camera_info",
        "CameraInfo of camera_topic, by which the chunk is drawn into its image; empty: it is not",
    ),
    ParameterRow(
        "camera_pose",
        "double[]",
        None,
        "Pose of the camera's optical frame in the frame of the path: x, y, z, roll, pitch, yaw; "
        "unset: the URDF's link that camera_info names",
        "m and rad",
        bounds=(-1e6, 1e6),
    ),
    ParameterRow(
        "camera_rotate_180",
        "bool",
        False,
        "Turn the image upside down, as the policy sees it",
        live=True,
    ),
    ParameterRow(
        "image_rate_hz",
        "double",
        10.0,
        "Annotated images per second at most; none are made while nobody listens",
        "Hz",
        bounds=(0.1, 60.0),
        live=True,
    ),
    ParameterRow(
        "line_width_m",
        "double",
        0.005,
        "Width of the path's line",
        "m",
        bounds=(1e-4, 1.0),
        live=True,
    ),
)
