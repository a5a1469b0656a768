"""The demo: a simulated arm, the policy and the executor that moves it.

`ros2 launch thor_policy_ros demo.launch.py` ends by itself after `episodes`. Every argument of
policy.launch.py may be given too.
"""

import os
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch.actions import (
    DeclareLaunchArgument,
    IncludeLaunchDescription,
    OpaqueFunction,
    Shutdown,
)
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterFile

from launch import LaunchContext, LaunchDescription
from thor_policy_ros.evaluation.enclaves import enclave_arguments

SHARE = Path(get_package_share_directory("thor_policy_ros"))

ARGUMENTS = [
    DeclareLaunchArgument(
        "checkpoint",
        default_value=str(SHARE / "checkpoints" / "demo"),
        description="Folder of the demo's checkpoint",
    ),
    DeclareLaunchArgument(
        "config",
        default_value=str(SHARE / "config" / "demo.yaml"),
        description="Parameter file of the three nodes",
    ),
    DeclareLaunchArgument(
        "execute",
        default_value="true",
        choices=["true", "false"],
        description="Start chunk_executor_node, without which the arm stays where it is",
    ),
    DeclareLaunchArgument(
        "episodes", default_value="20", description="Episodes before the end; 0: without end"
    ),
    DeclareLaunchArgument("seed", default_value="0", description="Seed of the first episode"),
    DeclareLaunchArgument(
        "speed", default_value="0.12", description="Speed at which the objects drift [m/s]"
    ),
    DeclareLaunchArgument(
        "realtime_factor",
        default_value="1.0",
        description="Simulated seconds per second; other than 1 wants use_sim_time:=true",
    ),
]


def robot(context: LaunchContext) -> list[Node]:
    """The simulated robot; when it ends, so does the launch."""

    def value(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    return [
        Node(
            package="thor_policy_ros",
            executable="sim_robot_node",
            name="sim_robot_node",
            namespace=value("namespace"),
            output="both",
            emulate_tty=True,
            parameters=[
                ParameterFile(value("config")),
                {
                    "episodes": int(value("episodes")),
                    "seed": int(value("seed")),
                    "speed": float(value("speed")),
                    "realtime_factor": float(value("realtime_factor")),
                    "use_sim_time": value("use_sim_time") == "true",
                },
            ],
            remappings=[("commands", "chunk_executor_node/commands")],
            ros_arguments=[
                *("--log-level", value("log_level")),
                *enclave_arguments("sim_robot_node", value("namespace"), os.environ),
            ],
            on_exit=Shutdown(reason="the simulated robot has ended"),
        )
    ]


def generate_launch_description() -> LaunchDescription:
    policy = PythonLaunchDescriptionSource(str(SHARE / "launch" / "policy.launch.py"))
    return LaunchDescription(
        [*ARGUMENTS, IncludeLaunchDescription(policy), OpaqueFunction(function=robot)]
    )
