"""The parameters of every node: the only place where one is declared."""

from __future__ import annotations

from thor_policy_ros.backends.registry import BACKENDS, REMOTE
from thor_policy_ros.ros.checkpoint_parameters import CHECKPOINT
from thor_policy_ros.ros.health_parameters import HEALTH, HYSTERESIS
from thor_policy_ros.ros.parameters import ParameterRow
from thor_policy_ros.ros.recovery_parameters import RECOVERY
from thor_policy_ros.ros.remote_parameters import REMOTE_SERVER
from thor_policy_ros.ros.reuse_parameters import REUSE
from thor_policy_ros.ros.safety_parameters import SAFETY
from thor_policy_ros.ros.sim_camera_parameters import SIM_CAMERAS
from thor_policy_ros.ros.smooth_motion_parameters import EXECUTOR_MOTION, INJECTION, POLICY_MOTION

_INF = float("inf")

COMMON = (
    ParameterRow(
        "hardware_id",
        "string",
        "",
        "Name of the robot or computer in diagnostics; empty: the computer's host name",
    ),
    ParameterRow(
        "latency_window",
        "int",
        500,
        "Samples that the p50, p95 and p99 in diagnostics look back on",
        bounds=(10, 100_000),
    ),
)

# Lengths must agree with each other; a value of .inf is no bound.
LIMITS = (
    ParameterRow(
        "limits.lower",
        "double[]",
        None,
        "Lowest command of each joint",
        "rad or m",
        bounds=(-_INF, _INF),
    ),
    ParameterRow(
        "limits.upper",
        "double[]",
        None,
        "Highest command of each joint",
        "rad or m",
        bounds=(-_INF, _INF),
    ),
    ParameterRow(
        "limits.velocity",
        "double[]",
        None,
        "Highest speed of each joint; .inf for a gripper that follows directly",
        "rad/s or m/s",
        bounds=(1e-6, _INF),
    ),
)

ACCELERATION_LIMIT = ParameterRow(
    "limits.acceleration",
    "double[]",
    None,
    "Highest acceleration of each joint; .inf for a gripper that follows directly",
    "rad/s^2 or m/s^2",
    bounds=(1e-6, _INF),
)

POLICY = (
    ParameterRow(
        "backend",
        "string",
        "pytorch",
        "Engine that runs the model. Set while the robot runs, it is loaded and verified beside "
        "the running one and takes over between two frames",
        choices=(*BACKENDS, REMOTE.name),
        live=True,
    ),
    *REUSE,
    *REMOTE_SERVER,
    ParameterRow(
        "switch_mode",
        "string",
        "auto",
        "Where a new backend loads: beside the running one, in a pause after closing it (no chunks "
        "meanwhile), or auto: beside it if the GPU's memory allows both",
        choices=("auto", "beside", "pause"),
        live=True,
    ),
    ParameterRow(
        "verification_observations",
        "int",
        3,
        "Synthetic observations on which every loaded backend is compared with float32 PyTorch",
        bounds=(1, 100),
    ),
    ParameterRow(
        "verification_report_dir",
        "string",
        "",
        "Folder for verification_BACKEND.json of every load; empty: none",
    ),
    *CHECKPOINT,
    ParameterRow(
        "device",
        "string",
        "",
        "Torch device, as cpu or cuda:0; empty: a GPU if there is one",
    ),
    ParameterRow(
        "dtype",
        "string",
        "",
        "Type of the weights; empty: bfloat16 on a GPU, float32 on a CPU",
        choices=("", "float32", "bfloat16"),
    ),
    ParameterRow(
        "tensorrt_optimization_level",
        "int",
        2,
        "Builder level of the tensorrt engines, 0 (quick to build) to 5; above 2 the builder "
        "is said to crash on Jetson Thor. Each level has engines of its own",
        bounds=(0, 5),
    ),
    ParameterRow(
        "engine_cache_dir",
        "string",
        "",
        "Folder of built engines; empty: ~/.cache/thor_policy_ros/engines. `thor-policy build` "
        "fills it ahead of time",
    ),
    ParameterRow(
        "engine_cache_limit",
        "double",
        64.0,
        "Room for built engines; above it the least recently used are removed",
        "GiB",
        bounds=(0.1, 10_000.0),
    ),
    ParameterRow(
        "cpu_threads",
        "int",
        0,
        "Torch's CPU threads; 0: as torch chooses. Small models are faster with 1",
        bounds=(0, 256),
    ),
    ParameterRow(
        "realtime_priority",
        "int",
        0,
        "Priority of the inference thread under SCHED_FIFO, below the executor's; 0: the ordinary "
        "scheduler",
        bounds=(0, 99),
    ),
    ParameterRow(
        "autostart",
        "bool",
        True,
        "Configure and activate when the process starts, also after a respawn",
    ),
    ParameterRow("cameras", "string[]", ("base", "wrist"), "Names of the cameras to subscribe to"),
    ParameterRow(
        "image_reliability",
        "string",
        "best_effort",
        "Reliability of the image and joint state subscriptions",
        choices=("best_effort", "reliable"),
    ),
    ParameterRow(
        "joint_names",
        "string[]",
        None,
        "Joints of JointState that make the state, in the checkpoint's order; unset for a policy "
        "that wants no state",
    ),
    ParameterRow(
        "action_names",
        "string[]",
        None,
        "Joints that the columns of a chunk command; unset: joint_names",
    ),
    ParameterRow(
        "instruction",
        "string",
        "",
        "Words for the policy; empty: wait for the topic. The newest of parameter and topic counts",
        live=True,
    ),
    ParameterRow(
        "control_rate_hz",
        "double",
        10.0,
        "Inferences wanted per second of ROS time",
        "Hz",
        bounds=(0.1, 200.0),
        live=True,
    ),
    ParameterRow(
        "num_denoise_steps",
        "int",
        10,
        "Euler steps from noise to actions",
        bounds=(1, 100),
        live=True,
    ),
    ParameterRow(
        "seed",
        "int",
        -1,
        "Seed of the noise, counted up by one each frame; -1: drawn for each frame",
        bounds=(-1, 2**31 - 1),
        live=True,
    ),
    ParameterRow(
        "max_input_age_s",
        "double",
        0.2,
        "No inference when an input is older than this",
        "s",
        bounds=(0.001, 60.0),
        live=True,
    ),
    ParameterRow(
        "max_input_skew_s",
        "double",
        0.1,
        "No inference when two inputs are farther apart than this",
        "s",
        bounds=(0.001, 60.0),
        live=True,
    ),
    ParameterRow(
        "accept_zero_stamps",
        "bool",
        False,
        "Take the time of arrival for inputs whose stamp is zero; false: refuse them, since "
        "their age is not known",
        live=True,
    ),
    ParameterRow(
        "deadline_ms",
        "double",
        0.0,
        "Time allowed from control tick to chunk; 0: one control period",
        "ms",
        bounds=(0.0, 60_000.0),
        live=True,
    ),
    ParameterRow(
        "deadline_warn_ratio",
        "double",
        0.05,
        "Diagnostics warn when more than this share of recent frames missed the deadline",
        bounds=(0.0, 1.0),
        live=True,
    ),
    *HEALTH,
    *POLICY_MOTION,
    *RECOVERY,
    *INJECTION,
    *LIMITS,
    *COMMON,
)

# One set for each name in `cameras`.
CAMERA = (
    ParameterRow(
        "camera.{camera}.topic",
        "string",
        "camera_{camera}/image_raw",
        "Topic of camera {camera}",
    ),
    ParameterRow(
        "camera.{camera}.slot",
        "string",
        "",
        "Image input of the model that camera {camera} feeds; empty: the slot of that name",
    ),
    ParameterRow(
        "camera.{camera}.transport",
        "string",
        "raw",
        "Messages on the topic: sensor_msgs Image (raw) or CompressedImage (JPEG, PNG)",
        choices=("raw", "compressed"),
    ),
    ParameterRow(
        "camera.{camera}.rotate_180",
        "bool",
        False,
        "Turn the image upside down, as pi05_libero was trained",
    ),
)

EXECUTOR = (
    ParameterRow("joint_names", "string[]", None, "Joints to command, in the controller's order"),
    ParameterRow(
        "control_rate_hz",
        "double",
        100.0,
        "Commands per second of ROS time",
        "Hz",
        bounds=(1.0, 1000.0),
    ),
    ParameterRow(
        "output",
        "string",
        "commands",
        "What to publish: trajectory for joint_trajectory_controller, commands for "
        "forward_command_controller",
        choices=("trajectory", "commands", "both"),
    ),
    ParameterRow(
        "crossfade_s",
        "double",
        0.1,
        "Time over which a new chunk takes over from the one before",
        "s",
        bounds=(0.0, 10.0),
        live=True,
    ),
    ParameterRow(
        "hold_timeout_s",
        "double",
        0.5,
        "How long the last command is held before the robot is stopped",
        "s",
        bounds=(0.0, 60.0),
        live=True,
    ),
    ParameterRow(
        "max_chunk_age_s",
        "double",
        1.0,
        "No command is executed later than this after its observation",
        "s",
        bounds=(0.001, 60.0),
        live=True,
    ),
    ParameterRow(
        "max_joint_state_age_s",
        "double",
        0.5,
        "The robot is stopped while its joints were measured longer ago than this",
        "s",
        bounds=(0.01, 60.0),
        live=True,
    ),
    HYSTERESIS,
    ParameterRow(
        "max_lag_s",
        "double",
        0.5,
        "The robot is stopped, until ~/reset, when a joint is farther from its command than it "
        "moves in this time at full speed",
        "s",
        bounds=(0.01, 60.0),
        live=True,
    ),
    ParameterRow(
        "tick_jitter_warn_ms",
        "double",
        10.0,
        "Diagnostics warn when the p99 of the tick jitter exceeds this",
        "ms",
        bounds=(0.0, 1000.0),
        live=True,
    ),
    *EXECUTOR_MOTION,
    *SAFETY,
    *LIMITS,
    ACCELERATION_LIMIT,
    *COMMON,
)

SIM_ROBOT = (
    ParameterRow(
        "episodes",
        "int",
        0,
        "Episodes to run before the node ends; 0: without end",
        bounds=(0, 1_000_000),
    ),
    ParameterRow("seed", "int", 0, "Seed of the first episode, counted up", bounds=(0, 2**31 - 1)),
    ParameterRow(
        "speed",
        "double",
        0.12,
        "Speed at which the objects drift",
        "m/s",
        bounds=(0.0, 0.5),
    ),
    ParameterRow(
        "instruction",
        "string",
        "",
        "Words given in every episode; empty: those of the episode",
    ),
    ParameterRow(
        "realtime_factor",
        "double",
        1.0,
        "Simulated seconds per second; other than 1 wants use_sim_time",
        bounds=(0.05, 20.0),
    ),
    *SIM_CAMERAS,
    ParameterRow(
        "joint_state_rate_hz",
        "double",
        100.0,
        "Joint states per simulated second",
        "Hz",
        bounds=(1.0, 200.0),
    ),
    ParameterRow(
        "recording_dir",
        "string",
        "",
        "Folder for the poses of each episode, from which videos are made; empty: none",
    ),
    ParameterRow(
        "policy_node",
        "string",
        "policy_node",
        "Node whose ~/reset is called between episodes; empty: none",
    ),
    ParameterRow(
        "executor_node",
        "string",
        "chunk_executor_node",
        "Node whose ~/reset is called between episodes; empty: none",
    ),
    *INJECTION,
)
