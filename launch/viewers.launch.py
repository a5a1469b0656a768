"""Viewers beside the policy: `rviz:=true rqt:=true foxglove:=true` of policy.launch.py.

Each is started if it is installed; if not, the launch says what to install and goes on. On a
computer of your own: `ros2 launch thor_policy_ros viewers.launch.py rviz:=true`.
"""

import os
from pathlib import Path

from ament_index_python.packages import (
    PackageNotFoundError,
    get_package_prefix,
    get_package_share_directory,
)
from launch.actions import DeclareLaunchArgument, LogInfo, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterFile

from launch import LaunchContext, LaunchDescription
from thor_policy_ros.evaluation.enclaves import enclave_arguments

FLAG = ["true", "false"]
SHARE = Path(get_package_share_directory("thor_policy_ros"))
LAYOUTS = SHARE / "config" / "viewers"
OF_POLICY = ("frame_latency", "action_chunk")
SHOWN = ("path", "markers", "annotated_image", "joint_trajectory")
FOXGLOVE_PORT = 8765

ARGUMENTS = [
    DeclareLaunchArgument("namespace", default_value="", description="Namespace of the nodes"),
    DeclareLaunchArgument(
        "use_sim_time",
        default_value="false",
        choices=FLAG,
        description="Take the time from /clock, as a simulator or a bag publishes it",
    ),
    DeclareLaunchArgument(
        "config",
        default_value="policy",
        description="Parameter file: a path, or the name of one in the package's config folder",
    ),
    DeclareLaunchArgument(
        "rviz",
        default_value="false",
        choices=FLAG,
        description="Start rviz2 with the package's layout: chunk, instruction, camera",
    ),
    DeclareLaunchArgument(
        "rqt",
        default_value="false",
        choices=FLAG,
        description="Start rqt with the package's perspective, and the diagnostic aggregator",
    ),
    DeclareLaunchArgument(
        "foxglove",
        default_value="false",
        choices=FLAG,
        description=f"Start foxglove_bridge on port {FOXGLOVE_PORT}, for the layout in "
        "config/viewers/foxglove_layout.json",
    ),
    DeclareLaunchArgument(
        "viewer",
        default_value="auto",
        choices=["auto", *FLAG],
        description="Start chunk_viewer_node (path, markers, annotated image); auto: with any of "
        "the viewers",
    ),
]


def installed(package: str) -> bool:
    try:
        get_package_prefix(package)
    except PackageNotFoundError:
        return False
    return True


def not_installed(argument: str, package: str) -> LogInfo:
    distribution = os.environ.get("ROS_DISTRO", "jazzy")
    name = f"ros-{distribution}-{package.replace('_', '-')}"
    return LogInfo(
        msg=f"{argument}:=true, but {package} is not installed and not started; type: "
        f"sudo apt install {name}"
    )


def parameter_file(config: str) -> Path:
    """As policy.launch.py finds it."""
    return Path(config) if Path(config).is_file() else SHARE / "config" / f"{config}.yaml"


def rviz(common: dict) -> list:
    layout = ["-d", str(LAYOUTS / "thor_policy.rviz")]
    return [Node(package="rviz2", executable="rviz2", name="rviz2", arguments=layout, **common)]


def rqt(common: dict) -> list:
    layout = ["--perspective-file", str(LAYOUTS / "thor_policy.perspective")]
    gui = Node(package="rqt_gui", executable="rqt_gui", name="rqt", arguments=layout, **common)
    if not installed("diagnostic_aggregator"):
        return [gui, not_installed("rqt", "diagnostic_aggregator")]
    aggregator = Node(
        package="diagnostic_aggregator",
        executable="aggregator_node",
        name="analyzers",
        output="both",
        parameters=[ParameterFile(str(LAYOUTS / "diagnostic_aggregator.yaml"))],
    )
    return [gui, aggregator]


def foxglove(common: dict) -> list:
    bridge = Node(
        package="foxglove_bridge",
        executable="foxglove_bridge",
        name="foxglove_bridge",
        output="both",
        parameters=[{"port": FOXGLOVE_PORT, **common["parameters"][0]}],
    )
    layout = LAYOUTS / "foxglove_layout.json"
    hint = LogInfo(msg=f"foxglove: open ws://localhost:{FOXGLOVE_PORT}, import layout {layout}")
    return [bridge, hint]


VIEWERS = {"rviz": ("rviz2", rviz), "rqt": ("rqt_gui", rqt),
           "foxglove": ("foxglove_bridge", foxglove)}  # fmt: skip


def viewers(context: LaunchContext) -> list:
    """What was asked for and is installed, and a line for each that is not."""
    value = {
        argument.name: LaunchConfiguration(argument.name).perform(context) for argument in ARGUMENTS
    }
    namespace = value["namespace"].strip("/")
    common = {
        "output": "both",
        "parameters": [{"use_sim_time": value["use_sim_time"] == "true"}],
        "remappings": remappings(namespace),
    }
    wanted = {name: row for name, row in VIEWERS.items() if value[name] == "true"}
    found = []
    for name, (package, start) in wanted.items():
        found += start(common) if installed(package) else [not_installed(name, package)]
    if value["viewer"] == "true" or (value["viewer"] == "auto" and wanted):
        found.append(chunk_viewer(value))
    return found


def remappings(namespace: str) -> list[tuple[str, str]]:
    """The layouts name topics without a namespace."""
    if not namespace:
        return []
    names = [f"/policy_node/{topic}" for topic in OF_POLICY]
    names += [f"/chunk_viewer_node/{topic}" for topic in SHOWN]
    return [(name, f"/{namespace}{name}") for name in names]


def chunk_viewer(value: dict[str, str]) -> Node:
    return Node(
        package="thor_policy_ros",
        executable="chunk_viewer_node",
        name="chunk_viewer_node",
        namespace=value["namespace"],
        output="both",
        parameters=[
            ParameterFile(str(parameter_file(value["config"]))),
            {"use_sim_time": value["use_sim_time"] == "true"},
        ],
        remappings=[(topic, f"policy_node/{topic}") for topic in OF_POLICY],
        ros_arguments=enclave_arguments("chunk_viewer_node", value["namespace"], os.environ),
    )


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=viewers)])
