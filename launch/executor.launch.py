"""The robot's host, where the policy runs on another one: `ros2 launch thor_policy_ros
executor.launch.py config:=FILE`.

Starts chunk_executor_node alone, which moves the robot by the chunks of a policy node that
policy.launch.py starts on the other host. Every argument of policy.launch.py may be given.
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource

from launch import LaunchDescription

SHARE = Path(get_package_share_directory("thor_policy_ros"))

ARGUMENTS = [
    DeclareLaunchArgument(
        "policy",
        default_value="false",
        choices=["true", "false"],
        description="Start policy_node here too",
    ),
    DeclareLaunchArgument(
        "execute",
        default_value="true",
        choices=["true", "false"],
        description="Start chunk_executor_node, without which the robot stays where it is",
    ),
]


def generate_launch_description() -> LaunchDescription:
    both = PythonLaunchDescriptionSource(str(SHARE / "launch" / "policy.launch.py"))
    return LaunchDescription([*ARGUMENTS, IncludeLaunchDescription(both)])
