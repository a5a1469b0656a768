"""Frames to learn from: the expert at work, disturbed on purpose.

A frame keeps what the expert needs to answer, not the answer: `frames.py` asks it for every
object and verb, so one frame teaches every instruction.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

from thor_policy_ros.sim.arm_env import CAMERA_SLOTS
from thor_policy_ros.sim.scene import NUM_OBJECTS
from thor_policy_ros.training.disturbed_expert import FRAMES_PER_EPISODE, record_episodes
from thor_policy_ros.types import F32

_BATCH_EPISODES = 16
"""Episodes that one process runs side by side, to share the expert's vectorised rule."""


@dataclass(frozen=True)
class ExpertData:
    """N frames at 10 Hz, `FRAMES_PER_EPISODE` in a row of each episode; see `_layout` for dtypes.

    images [N,V,S,S,3] in the order of CAMERA_SLOTS; state [N,5]; held [N], index or -1;
    objects [N,3,3] centres, m; velocities [N,3,2], m/s; object_uv [N,V,3,2], the centres in
    each picture, outside [0,1] or NaN where not in view; colours, shapes [N,3];
    episode, tick [N]; speed [N], m/s.
    """

    images: npt.NDArray[np.uint8]
    state: F32
    held: npt.NDArray[np.int8]
    objects: F32
    velocities: F32
    object_uv: F32
    colours: npt.NDArray[np.int8]
    shapes: npt.NDArray[np.int8]
    episode: npt.NDArray[np.int32]
    tick: npt.NDArray[np.int16]
    speed: F32

    def __len__(self) -> int:
        return len(self.state)

    @staticmethod
    def load(folder: str | Path, in_memory: bool = False) -> ExpertData:
        """Read what `generate` wrote; the files are memory-mapped unless `in_memory`."""
        arrays = {}
        for field in fields(ExpertData):
            mapped = np.load(Path(folder) / f"{field.name}.npy", mmap_mode="r")
            arrays[field.name] = np.array(mapped) if in_memory else mapped
        return ExpertData(**arrays)


def generate(
    folder: str | Path,
    episodes: int,
    seed: int = 0,
    workers: int | None = None,
    image_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> ExpertData:
    """Record `episodes` disturbed episodes into .npy files in `folder`, and open them.

    The result depends on `episodes`, `seed` and `image_size` alone. workers: processes, default
    one a core. progress: called with (episodes done, episodes).
    """
    _create_files(Path(folder), episodes * FRAMES_PER_EPISODE, image_size)
    starts = range(0, episodes, _BATCH_EPISODES)
    jobs = [
        _Job(str(folder), seed, start, min(start + _BATCH_EPISODES, episodes), image_size)
        for start in starts
    ]
    done = 0
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers or os.cpu_count()) as pool:
        for job in pool.imap_unordered(_record, jobs):
            done += job.stop - job.start
            if progress is not None:
                progress(done, episodes)
    return ExpertData.load(folder)


@dataclass(frozen=True)
class _Job:
    """Episodes start..stop-1 of a data set, for one process to record."""

    folder: str
    seed: int
    start: int
    stop: int
    image_size: int


def _record(job: _Job) -> _Job:
    frames = record_episodes(job.seed, range(job.start, job.stop), job.image_size)
    rows = slice(job.start * FRAMES_PER_EPISODE, job.stop * FRAMES_PER_EPISODE)
    for name, values in frames.items():
        file = np.load(Path(job.folder) / f"{name}.npy", mmap_mode="r+")
        file[rows] = values  # not flushed: the readers share the page cache, msync is slow
    return job


def _create_files(folder: Path, count: int, image_size: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (dtype, shape) in _layout(image_size).items():
        path = folder / f"{name}.npy"
        np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(count, *shape)).flush()


def _layout(image_size: int) -> dict[str, tuple[type[np.generic], tuple[int, ...]]]:
    """dtype and shape of one frame of each field."""
    views = len(CAMERA_SLOTS)
    return {
        "images": (np.uint8, (views, image_size, image_size, 3)),
        "state": (np.float32, (5,)),
        "held": (np.int8, ()),
        "objects": (np.float32, (NUM_OBJECTS, 3)),
        "velocities": (np.float32, (NUM_OBJECTS, 2)),
        "object_uv": (np.float32, (views, NUM_OBJECTS, 2)),
        "colours": (np.int8, (NUM_OBJECTS,)),
        "shapes": (np.int8, (NUM_OBJECTS,)),
        "episode": (np.int32, ()),
        "tick": (np.int16, ()),
        "speed": (np.float32, ()),
    }


def main() -> None:
    """Command line: record a data set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", required=True, help="folder for the .npy files")
    parser.add_argument("--episodes", type=int, default=7000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=None, help="processes; default: all cores")
    parser.add_argument("--image-size", type=int, default=64, help="pixels a side")
    args = parser.parse_args()
    data = generate(args.out, args.episodes, args.seed, args.workers, args.image_size)
    print(f"{len(data)} frames in {args.out}")


if __name__ == "__main__":
    main()
