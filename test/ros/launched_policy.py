"""For launch_testing: policy.launch.py started by the real launch brings the node to active.

`launch_test test/ros/launched_policy.py checkpoint:=FOLDER`; test_launch.py runs it where
launch is installed.
"""

import time
import unittest
from pathlib import Path

import launch_testing.actions
import launch_testing.asserts
import rclpy
from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from lifecycle_msgs.srv import GetState

import launch

SHARE = Path(get_package_share_directory("thor_policy_ros"))
PATIENCE_S = 60.0


def generate_test_description() -> launch.LaunchDescription:
    policy = PythonLaunchDescriptionSource(str(SHARE / "launch" / "policy.launch.py"))
    arguments = {"checkpoint": LaunchConfiguration("checkpoint"), "config": "demo"}
    return launch.LaunchDescription(
        [
            DeclareLaunchArgument("checkpoint", description="Folder of a demo checkpoint"),
            IncludeLaunchDescription(policy, launch_arguments=arguments.items()),
            launch_testing.actions.ReadyToTest(),
        ]
    )


class TestActive(unittest.TestCase):
    def test_the_node_becomes_active(self) -> None:
        rclpy.init()
        node = rclpy.create_node("launch_probe")
        try:
            client = node.create_client(GetState, "policy_node/get_state")
            self.assertTrue(client.wait_for_service(60.0))
            state, deadline = "", time.monotonic() + PATIENCE_S
            while state != "active" and time.monotonic() < deadline:
                future = client.call_async(GetState.Request())
                rclpy.spin_until_future_complete(node, future)
                state = future.result().current_state.label
                time.sleep(0.1)
            self.assertEqual(state, "active")
        finally:
            node.destroy_node()
            rclpy.shutdown()


@launch_testing.post_shutdown_test()
class TestEnd(unittest.TestCase):
    def test_the_process_ended_well(self, proc_info: object) -> None:
        launch_testing.asserts.assertExitCodes(proc_info)
