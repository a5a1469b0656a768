"""Makes the simulator's environment: a venv of its own, from requirements/libero.txt."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import thor_policy_ros

REQUIREMENTS = Path("requirements") / "libero.txt"


def make_environment(folder: Path) -> Path:
    """A venv with the pinned simulator; takes minutes and 1.4 GB. Returns its Python.

    FileNotFoundError without the pins (they are in the source tree), OSError where pip fails.
    """
    pins = Path(thor_policy_ros.__file__).resolve().parents[1] / REQUIREMENTS
    if not pins.is_file():
        raise FileNotFoundError(f"no {pins}: run this from a checkout of thor_policy_ros")
    python = folder / "bin" / "python"
    _run([sys.executable, "-m", "venv", str(folder)])
    # The list is complete. What the packages declare is not what they need: hf-libero alone
    # declares transformers, wandb and robomimic.
    _run([str(python), "-m", "pip", "install", "--no-deps", "-r", str(pins)])
    return python


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    except subprocess.CalledProcessError as error:
        raise OSError(f"{' '.join(command)} ended with status {error.returncode}") from error
