"""The policy on a robot: `ros2 launch thor_policy_ros policy.launch.py checkpoint:=FOLDER`.

The policy node alone only watches and publishes chunks; `execute:=true` adds the chunk executor,
which moves the robot.
"""

import os
import tempfile
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterFile, ParameterValue

from launch import LaunchContext, LaunchDescription
from thor_policy_ros.backends.registry import BACKENDS, REMOTE
from thor_policy_ros.evaluation.enclaves import enclave_arguments

FLAG = ["true", "false"]
# Two 640x480 cameras at 30 Hz arrived at 11 to 15 Hz by default, and at 30 Hz with this.
LARGE_DATA = "LARGE_DATA?max_msg_size=4MB&sockets_size=4MB&non_blocking=true"

ARGUMENTS = [
    DeclareLaunchArgument(
        "backend",
        default_value="pytorch",
        choices=[*BACKENDS, REMOTE.name],
        description="Engine that runs the model",
    ),
    DeclareLaunchArgument(
        "checkpoint",
        default_value="",
        description="Folder with model.safetensors; empty: as the config says",
    ),
    DeclareLaunchArgument(
        "config",
        default_value="policy",
        description="Parameter file: a path, or the name of one in the package's config folder "
        "(policy, pi05_libero, pi05_droid, pi05_aloha, demo)",
    ),
    DeclareLaunchArgument("namespace", default_value="", description="Namespace of the nodes"),
    DeclareLaunchArgument(
        "use_sim_time",
        default_value="false",
        choices=FLAG,
        description="Take the time from /clock, as a simulator or a bag publishes it",
    ),
    DeclareLaunchArgument(
        "instruction",
        default_value="",
        description="Words for the policy; empty: as the config says, or from topic instruction",
    ),
    DeclareLaunchArgument(
        "execute",
        default_value="false",
        choices=FLAG,
        description="Also start chunk_executor_node, which moves the robot",
    ),
    DeclareLaunchArgument(
        "commands_topic",
        default_value="",
        description="Where the executor's commands go, as "
        "/forward_position_controller/commands; empty: chunk_executor_node/commands",
    ),
    DeclareLaunchArgument(
        "joint_trajectory_topic",
        default_value="",
        description="Where its trajectories go, with `output: trajectory`, as "
        "/joint_trajectory_controller/joint_trajectory; empty: "
        "chunk_executor_node/joint_trajectory",
    ),
    DeclareLaunchArgument(
        "policy",
        default_value="true",
        choices=FLAG,
        description="Start policy_node; false on a robot whose policy runs on another host, as "
        "executor.launch.py does",
    ),
    DeclareLaunchArgument(
        "peers",
        default_value="",
        description="Other hosts, 'ADDRESS;ADDRESS', on a network without multicast "
        "(ROS_STATIC_PEERS); empty: as the environment says",
    ),
    DeclareLaunchArgument(
        "autostart",
        default_value="true",
        choices=FLAG,
        description="Configure and activate the policy node at start, and after a respawn",
    ),
    DeclareLaunchArgument(
        "respawn",
        default_value="false",
        choices=FLAG,
        description="Start a node again when its process ends, with the parameters set meanwhile; "
        "the policy node also recovers by itself from a failed frame",
    ),
    DeclareLaunchArgument(
        "large_images",
        default_value="false",
        choices=FLAG,
        description="Fast DDS transport for images above about 64 kB; the camera drivers want the "
        f"same: FASTDDS_BUILTIN_TRANSPORTS='{LARGE_DATA}'. ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST "
        "would undo it",
    ),
    DeclareLaunchArgument(
        "log_level",
        default_value="info",
        choices=["debug", "info", "warn", "error", "fatal"],
        description="Lowest level of the nodes' messages that is shown",
    ),
]


def config_file(name: str) -> str:
    """The path of a parameter file. Raises FileNotFoundError naming the choices."""
    folder = Path(get_package_share_directory("thor_policy_ros")) / "config"
    for path in (Path(name), folder / f"{name}.yaml"):
        if path.is_file():
            return str(path)
    names = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
    raise FileNotFoundError(f"config {name!r} is neither a file nor one of: {names}")


def state_file() -> str:
    """Of this launch alone; none where nothing can be written."""
    try:
        return str(Path(tempfile.mkdtemp(prefix="thor_policy_")) / "parameters.json")
    except OSError:
        return ""


def outputs(value: dict[str, str]) -> list[tuple[str, str]]:
    """Remappings of what the executor publishes for the robot's controller."""
    topics = {name: value[f"{name}_topic"] for name in ("commands", "joint_trajectory")}
    return [(f"~/{name}", topic) for name, topic in topics.items() if topic]


def ros_arguments(node: str, value: dict[str, str]) -> list[str]:
    enclave = enclave_arguments(node, value["namespace"], os.environ)
    return ["--log-level", value["log_level"], *enclave]


def environment(large_images: bool, peers: str) -> dict[str, str]:
    """What the middleware is told; what is not here stays as the user exported it."""
    told = {"FASTDDS_BUILTIN_TRANSPORTS": LARGE_DATA} if large_images else {}
    return told | ({"ROS_STATIC_PEERS": peers} if peers else {})


def nodes(context: LaunchContext) -> list[Node]:
    """The nodes for the arguments as they were resolved; an empty text leaves the config's."""
    value = {
        argument.name: LaunchConfiguration(argument.name).perform(context) for argument in ARGUMENTS
    }
    flag = {name: value[name] == "true" for name in value if value[name] in FLAG}
    texts = {name: value[name] for name in ("backend", "checkpoint", "instruction")}
    policy_parameters = {
        name: ParameterValue(text, value_type=str) for name, text in texts.items() if text
    }
    policy_parameters["autostart"] = flag["autostart"]
    if flag["respawn"]:
        policy_parameters |= {"recover_after_s": 1.0, "state_file": state_file()}
    common = {
        "package": "thor_policy_ros",
        "namespace": value["namespace"],
        "output": "both",
        "emulate_tty": True,
        "respawn": flag["respawn"],
        "respawn_delay": 2.0,
        "additional_env": environment(flag["large_images"], value["peers"]),
    }
    config = ParameterFile(config_file(value["config"]))
    clock = {"use_sim_time": flag["use_sim_time"]}
    policy = Node(
        executable="policy_node",
        name="policy_node",
        parameters=[config, policy_parameters, clock],
        ros_arguments=ros_arguments("policy_node", value),
        **common,
    )
    executor = Node(
        executable="chunk_executor_node",
        name="chunk_executor_node",
        parameters=[config, clock],
        ros_arguments=ros_arguments("chunk_executor_node", value),
        remappings=[
            ("action_chunk", "policy_node/action_chunk"),
            ("heartbeat", "policy_node/heartbeat"),
            *outputs(value),
        ],
        **common,
    )
    chosen = [policy] * flag["policy"] + [executor] * flag["execute"]
    if not chosen:
        raise ValueError("policy:=false execute:=false starts nothing; set one of them to true")
    return chosen


def generate_launch_description() -> LaunchDescription:
    folder = Path(get_package_share_directory("thor_policy_ros")) / "launch"
    viewers = PythonLaunchDescriptionSource(str(folder / "viewers.launch.py"))
    included = IncludeLaunchDescription(viewers)
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=nodes), included])
