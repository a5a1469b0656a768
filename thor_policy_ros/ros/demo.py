"""`make demo`: a simulated arm solves tasks given in words, driven through the real ROS 2 nodes.

Starts the policy node, the chunk executor and the simulated robot as separate processes, watches
their topics, and leaves a video, a latency plot and the figures.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import rclpy
from rich.console import Console
from rich.live import Live
from rich.progress import Progress

from thor_policy_ros.ros.demo_monitor import DemoMonitor, live_table
from thor_policy_ros.ros.demo_progress import DemoProgress
from thor_policy_ros.ros.demo_report import write_latency_plot, write_summary
from thor_policy_ros.ros.node_processes import (
    EXECUTOR_REMAPS,
    NodeCommand,
    NodeDiedError,
    NodeProcesses,
)

REDRAW_S = 0.5
START_LIMIT_S = 180.0
EPISODE_LIMIT_S = 60.0
"""Wall time without a finished episode after which the demo gives up."""
PASS_RATE = 0.8


class DemoStalledError(RuntimeError):
    """Nothing happened for too long."""


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo ARGS=...", description=__doc__)
    parser.add_argument("--episodes", type=int, default=20, help="episodes to run (default 20)")
    parser.add_argument(
        "--speed", type=float, default=0.12, help="drift of the objects, m/s (default 0.12)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the scenes (default 0)")
    parser.add_argument("--backend", default="pytorch", help="a name of `thor-policy backends`")
    parser.add_argument("--num-steps", type=int, default=3, help="denoise steps (default 3)")
    parser.add_argument("--checkpoint", type=Path, help="default: the demo checkpoint")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for the results")
    parser.add_argument(
        "--video-episodes", type=int, default=6, help="episodes in the video; 0 for no video"
    )
    arguments = parser.parse_args(argv)
    if arguments.episodes < 1:
        parser.error(f"--episodes wants at least 1, got {arguments.episodes}")
    return arguments


def node_commands(arguments: argparse.Namespace, share: Path) -> list[NodeCommand]:
    """The three nodes with the parameters that `demo.launch.py` gives them."""
    config = (share / "config" / "demo.yaml",)
    checkpoint = arguments.checkpoint or share / "checkpoints" / "demo"
    return [
        NodeCommand(
            "policy_node",
            config,
            (
                ("checkpoint", str(checkpoint.resolve())),
                ("backend", arguments.backend),
                ("num_denoise_steps", str(arguments.num_steps)),
            ),
        ),
        NodeCommand("chunk_executor_node", config, remaps=EXECUTOR_REMAPS),
        NodeCommand(
            "sim_robot_node",
            config,
            (
                ("episodes", str(arguments.episodes)),
                ("speed", str(arguments.speed)),
                ("seed", str(arguments.seed)),
                ("recording_dir", str((arguments.out / "episodes").resolve())),
            ),
            remaps=(("commands", "chunk_executor_node/commands"),),
        ),
    ]


def watch(progress: DemoProgress, processes: NodeProcesses, console: Console) -> None:
    """Spin the monitor and redraw the table until all episodes ended.

    Raises NodeDiedError when a node ends, DemoStalledError when episodes stop coming.
    """
    monitor = DemoMonitor(progress)
    last_event_s, seen = time.monotonic(), 0
    try:
        with Live(console=console, auto_refresh=False) as live:
            while not progress.finished:
                _spin_for(monitor, REDRAW_S)
                processes.require_alive()
                now_s = time.monotonic()
                if len(progress.episodes) > seen:
                    _announce(progress, seen, live.console)
                    seen, last_event_s = len(progress.episodes), now_s
                _require_progress(progress, now_s - last_event_s)
                if console.is_terminal:
                    live.update(live_table(progress, now_s), refresh=True)
    finally:
        monitor.destroy_node()
    console.print(live_table(progress, time.monotonic()))


def _spin_for(monitor: DemoMonitor, seconds: float) -> None:
    end_s = time.monotonic() + seconds
    while (left_s := end_s - time.monotonic()) > 0:
        rclpy.spin_once(monitor, timeout_sec=left_s)


def _announce(progress: DemoProgress, already: int, console: Console) -> None:
    for number, episode in enumerate(progress.episodes[already:], already + 1):
        console.print(
            f"episode {number:3d}/{progress.wanted_episodes}  {episode.outcome:12s} "
            f"{episode.duration_s:5.1f} s  {episode.instruction}",
            highlight=False,
        )


def _require_progress(progress: DemoProgress, quiet_s: float) -> None:
    limit_s = EPISODE_LIMIT_S if progress.episodes else START_LIMIT_S
    if quiet_s > limit_s:
        raise DemoStalledError(
            f"no episode ended within {limit_s:.0f} s ({progress.frames} frames came from the "
            f"policy, {len(progress.episodes)} episodes had ended)"
        )


def report(progress: DemoProgress, arguments: argparse.Namespace, console: Console) -> None:
    """Write figures, plot and video below `--out`, and print where they are."""
    settings: dict[str, object] = {
        "backend": arguments.backend,
        "num_denoise_steps": arguments.num_steps,
        "speed_m_s": arguments.speed,
        "seed": arguments.seed,
        "cpu_count": os.cpu_count(),
    }
    figures = arguments.out / "demo.json"
    write_summary(progress, settings, figures)
    plot = arguments.out / "latency.png"
    write_latency_plot(
        progress,
        f"{arguments.backend}, {arguments.num_steps} denoise steps, {os.cpu_count()} CPU cores",
        plot,
    )
    console.print(f"figures: {figures}\nlatency plot: {plot}", highlight=False, soft_wrap=True)
    if arguments.video_episodes > 0:
        video = arguments.out / "demo.mp4"
        _film(arguments, video, console)
        console.print(f"video: {video}", highlight=False, soft_wrap=True)


def _film(arguments: argparse.Namespace, path: Path, console: Console) -> None:
    from thor_policy_ros.sim.film import write_video
    from thor_policy_ros.sim.recording import load_episode

    files = sorted((arguments.out / "episodes").glob("*.npz"))[: arguments.video_episodes]
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("rendering the video", total=len(files))
        write_video(
            [load_episode(file) for file in files],
            path,
            lambda done, _total: bar.update(task, completed=done),
        )


def isolate() -> None:
    """Keep the demo's topics on this machine and off any robot's domain.

    A ROS_DOMAIN_ID that the user exported is kept.
    """
    os.environ.setdefault("ROS_DOMAIN_ID", str(random.randint(1, 99)))
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")


@contextmanager
def isolated_ros() -> Iterator[None]:
    """rclpy as `isolate` has it, until the end of the block."""
    isolate()
    rclpy.init(args=[])
    try:
        yield
    finally:
        rclpy.try_shutdown()


def share_dir() -> Path:
    """The package's share folder if it is installed, else the source tree."""
    from ament_index_python.packages import PackageNotFoundError, get_package_share_directory

    try:
        return Path(get_package_share_directory("thor_policy_ros"))
    except PackageNotFoundError:
        return Path(__file__).resolve().parents[2]


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    console = Console()
    isolate()
    for old in arguments.out.glob("episodes/*.npz"):
        old.unlink()
    progress = DemoProgress(arguments.episodes)
    failure = ""
    rclpy.init(args=[])
    try:
        with NodeProcesses(arguments.out / "logs") as processes:
            processes.start(node_commands(arguments, share_dir()))
            console.print(
                f"starting the nodes on ROS domain {os.environ['ROS_DOMAIN_ID']}; "
                f"their logs: {arguments.out / 'logs'}",
                highlight=False,
            )
            watch(progress, processes, console)
    except (NodeDiedError, DemoStalledError) as error:
        failure = str(error)
    except KeyboardInterrupt:
        failure = "interrupted"
    finally:
        rclpy.try_shutdown()
    if progress.frames:
        report(progress, arguments, console)
    if failure:
        console.print(f"demo failed: {failure}", style="red", highlight=False)
    print(f"demo: {progress.solved}/{progress.wanted_episodes} episodes solved", flush=True)
    return 0 if not failure and progress.success_rate >= PASS_RATE else 1


if __name__ == "__main__":
    sys.exit(main())
