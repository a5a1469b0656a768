"""What is benched: a checkpoint, or random weights of a named policy's sizes, and its inputs."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from thor_policy_ros.backends.fp8_calibration import ActivationRanges
from thor_policy_ros.backends.fp8_scales import Fp8Scales, write_scales
from thor_policy_ros.backends.pytorch import DTYPES, PyTorchBackend, checked_device, checked_dtype
from thor_policy_ros.backends.registry import BACKENDS, spec_of
from thor_policy_ros.model.checkpoint import load_pi05, save_pi05
from thor_policy_ros.model.config import Pi05Config
from thor_policy_ros.model.image_memory import image_array
from thor_policy_ros.model.named_configs import NAMED, load_policy_config
from thor_policy_ros.model.pi05 import Pi05
from thor_policy_ros.model.weight_files import checkpoint_hash
from thor_policy_ros.types import F32, ModelInputs

REFERENCE = "pytorch"
CALIBRATION_SEEDS = range(1_000_000, 1_000_008)
PERCENTILE = 99.9


@dataclass(frozen=True)
class Subject:
    """A folder with weights, where they are from, and the sizes of inputs."""

    folder: Path
    weights: str
    config_name: str
    config: Pi05Config
    cameras: int
    prompt_tokens: int

    def inputs(self, seed: int) -> ModelInputs:
        """Random pixels and tokens; missing cameras come last. They lie where a frame's do."""
        config, random = self.config, np.random.default_rng(seed)
        size = config.vision.image_size
        images = image_array((config.num_cameras, 3, size, size))
        images[:] = (256 * random.random(images.shape)).astype(np.uint8)
        present = np.arange(config.num_cameras) < self.cameras
        images[~present] = 0
        real = np.arange(config.max_token_len) < self.prompt_tokens
        tokens = random.integers(1, config.vocab_size, config.max_token_len)
        return ModelInputs(images, present, np.where(real, tokens, 0).astype(np.int32), real)

    def noise(self, seed: int) -> F32:
        """f32[H,32], the same for every backend."""
        shape = (self.config.action_horizon, self.config.action_dim)
        return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def add_subject_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that say what is benched, on what."""
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="a folder with weights")
    parser.add_argument("--config", help="named policy, where the folder does not say")
    parser.add_argument(
        "--random-weights", action="store_true",
        help="instead of --checkpoint: random weights of --config's sizes, written to a"
        " temporary folder (7 GB for the published sizes); FP8 scales are calibrated there",
    )  # fmt: skip
    parser.add_argument(
        "--backend", default=REFERENCE, metavar="X[,Y]",
        help=f"one or more of: {', '.join(BACKENDS)} (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    parser.add_argument(
        "--dtype", choices=sorted(DTYPES), help="default: bfloat16 on a GPU, float32 on a CPU"
    )
    parser.add_argument("--cameras", type=positive, default=2, help="present (default: 2)")
    parser.add_argument(
        "--prompt-tokens", type=positive, default=20, help="without padding (default: 20)"
    )
    parser.add_argument("--num-steps", type=positive, default=10, help="denoise (default: 10)")
    parser.add_argument("--json", metavar="FILE", help="write the result; - for stdout alone")


@contextmanager
def opened_subject(arguments: argparse.Namespace) -> Iterator[Subject]:
    """The subject that the arguments name; random weights are deleted at the end."""
    if arguments.random_weights == (arguments.checkpoint is not None):
        raise ValueError("give --checkpoint DIR, or --random-weights with --config NAME")
    if not arguments.random_weights:
        policy = load_policy_config(arguments.checkpoint, arguments.config)
        yield _subject(arguments, arguments.checkpoint, policy.name, policy.model)
        return
    if arguments.config not in NAMED:
        raise ValueError(
            f"--random-weights wants --config, one of: {', '.join(sorted(NAMED))};"
            f" got {arguments.config!r}"
        )
    config = NAMED[arguments.config].model
    with tempfile.TemporaryDirectory(prefix="thor_policy_bench_") as folder:
        subject = _subject(arguments, Path(folder), arguments.config, config)
        device = checked_device(arguments.device)
        write_random_weights(subject.folder, config, device)
        if any(spec_of(name).fp8_scale == "static" for name in backend_names(arguments)):
            calibrate(subject, device)
        yield subject


def write_random_weights(folder: Path, config: Pi05Config, device: torch.device) -> None:
    """Weights as training would start with, the same for the same device; saved in bfloat16."""
    torch.manual_seed(0)
    with torch.device(device):
        model = Pi05(config)
    save_pi05(model, folder, torch.bfloat16)
    del model
    if device.type == "cuda":
        torch.cuda.empty_cache()


def calibrate(subject: Subject, device: torch.device) -> None:
    """Store FP8 scales of random inputs, other ones than are benched, beside the weights."""
    model = load_pi05(subject.folder, subject.config, device, torch.bfloat16)
    ranges = ActivationRanges(model)
    with closing(PyTorchBackend(BACKENDS[REFERENCE], model)) as backend, ranges.recording():
        for seed in CALIBRATION_SEEDS:
            backend.prefill(subject.inputs(seed), 0.0)
        scales = Fp8Scales(
            checkpoint=checkpoint_hash(subject.folder),
            percentile=PERCENTILE,
            frames=len(CALIBRATION_SEEDS),
            source="random images and tokens of bench",
            layers=ranges.layers(PERCENTILE),
            inputs=ranges.inputs(PERCENTILE),
        )
    write_scales(subject.folder, scales)


def backend_names(arguments: argparse.Namespace) -> list[str]:
    """The asked-for backends, each once; ValueError for an unknown one."""
    names = [name.strip() for name in arguments.backend.split(",") if name.strip()]
    if not names:
        raise ValueError(f"--backend wants one or more of: {', '.join(BACKENDS)}")
    return [spec_of(name).name for name in dict.fromkeys(names)]


def device_and_dtype(arguments: argparse.Namespace) -> tuple[torch.device, torch.dtype]:
    """Of the options, or the defaults of this machine."""
    device = checked_device(arguments.device)
    return device, checked_dtype(arguments.dtype, device)


def positive(text: str) -> int:
    """A command line number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"wanted at least 1, got {number}")
    return number


def _subject(arguments: argparse.Namespace, folder: Path, name: str, config: Pi05Config) -> Subject:
    for option, most in (("cameras", config.num_cameras), ("prompt_tokens", config.max_token_len)):
        if getattr(arguments, option) > most:
            option_name = option.replace("_", "-")
            raise ValueError(
                f"--{option_name}: wanted 1 to {most} for {name}, got {getattr(arguments, option)}"
            )
    weights = "random" if arguments.random_weights else str(folder)
    return Subject(folder, weights, name, config, arguments.cameras, arguments.prompt_tokens)
