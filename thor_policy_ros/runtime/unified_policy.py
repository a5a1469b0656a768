"""The public entry: a checkpoint and a backend's name become a policy to call.

with UnifiedPolicy("checkpoints/demo") as policy:
    chunk = policy.infer(Observation(images, state, "pick up the red cube", stamp_s))
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from thor_policy_ros.backends.registry import create_backend, spec_of
from thor_policy_ros.model.checksums import verify_checksums
from thor_policy_ros.model.config import PolicyConfig
from thor_policy_ros.model.named_configs import load_policy_config
from thor_policy_ros.model.norm_stats import load_norm_stats
from thor_policy_ros.model.tokenizer import PromptTokenizer, find_tokenizer
from thor_policy_ros.model.transforms import Preprocessor
from thor_policy_ros.runtime.policy_runner import PolicyRunner
from thor_policy_ros.types import (
    F32,
    ActionChunk,
    Backend,
    BackendSpec,
    Closing,
    EngineOptions,
    ModelInputs,
    Observation,
)

if TYPE_CHECKING:
    import torch


class InferenceRefusedError(RuntimeError):
    """The policy computed a chunk that must not be used; the message says why."""


class UnifiedPolicy(Closing):
    """Transforms, model and backend of one checkpoint. One thread uses it at a time.

    Loading raises, before any weight is read, for a folder without config, statistics or
    tokenizer, and CheckpointError for weights that do not fit the config or files that are not
    those of the folder's checksums.json, if it has one.

    checkpoint: folder with model.safetensors, in openpi's or LeRobot's layout.
    backend: a name in BACKENDS.
    config: a PolicyConfig, the name of one, or a JSON file; None where the folder says.
    device: 'cpu', 'cuda', 'cuda:1'; None takes CUDA where there is one.
    dtype: 'float32', 'bfloat16' or the torch dtypes; None is bfloat16 on CUDA, else float32.
    tokenizer: sentencepiece file; None where it is in the folder or in openpi's cache.
    clock: seconds, for stage timing.
    engine_options: of engines that are built before they run; None for the defaults.
    """

    def __init__(
        self,
        checkpoint: Path | str,
        backend: str = "pytorch",
        *,
        config: PolicyConfig | str | Path | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        tokenizer: Path | str | None = None,
        clock: Callable[[], float] = time.perf_counter,
        engine_options: EngineOptions | None = None,
    ) -> None:
        self.spec: BackendSpec = spec_of(backend)
        verify_checksums(checkpoint)
        self.config = load_policy_config(checkpoint, config)
        self._preprocessor = Preprocessor(
            self.config,
            load_norm_stats(checkpoint, self.config.asset_id),
            PromptTokenizer(find_tokenizer(checkpoint, tokenizer)),
        )
        self.backend: Backend = create_backend(
            backend, checkpoint, self.config.model, device, dtype, engine_options
        )
        # Not a cycle: a policy that is dropped takes its memory along, at once.
        self._runner = PolicyRunner(weakref.proxy(self), None, clock)

    def warmup(self) -> None:
        """Run one empty frame, so that the first real one takes no longer than the others."""
        self.backend.warmup()

    def preprocess(self, observation: Observation) -> ModelInputs:
        """What the backend takes of an observation in robot units; ValueError says what is wrong
        with it. Images are resized here, unless the backend does that itself."""
        resizes = getattr(self.backend, "resizes_frames", False)
        return self._preprocessor(observation, resize=not resizes)

    def postprocess(self, actions: F32, state: F32) -> F32:
        """Normalised actions f32[H,32] -> commands f32[H,A], robot units.

        state: f32[S] of the observation that the prefix was made from.
        """
        return self._preprocessor.unnormalise(actions, state)

    def normalise(self, actions: F32, state: F32) -> F32:
        """The inverse of `postprocess`: commands f32[H,A] -> normalised actions f32[H,32]."""
        return self._preprocessor.normalise_actions(actions, state)

    def infer(
        self,
        observation: Observation,
        num_steps: int = 10,
        seed: int | None = None,
        noise: F32 | None = None,
    ) -> ActionChunk:
        """One fresh chunk, with its timing, from one observation.

        num_steps: denoise steps. The noise, f32[H,32], is given, drawn from `seed` (the same
        on every device and backend), or from entropy. Raises ValueError for a wrong
        observation and InferenceRefusedError for actions that are not finite.
        """
        self._runner.reset()
        result = self._runner.step(
            observation, observation.stamp_s, 0, num_steps, noise=noise, seed=seed
        )
        if result.chunk is None:
            raise InferenceRefusedError(
                f"no chunk from backend {self.spec.name!r}: {result.refused}"
            )
        return result.chunk

    def close(self) -> None:
        """Free the model's memory."""
        self.backend.close()
