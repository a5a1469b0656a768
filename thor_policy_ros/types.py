"""The vocabulary of the package: frozen dataclasses and protocols, NumPy only.

Tensor letters: B batch, V cameras, P prefix tokens, L prompt tokens, H horizon,
A action dimensions, S state dimensions, D head dimension.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from typing import Self  # Python 3.10 has none

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
I32 = npt.NDArray[np.int32]
Bool = npt.NDArray[np.bool_]


class Closing(abc.ABC):
    """Closed at the end of its `with` block."""

    @abc.abstractmethod
    def close(self) -> None:
        """Free what it holds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Observation:
    """What the robot saw at one time, in robot units.

    images: camera slot -> u8[H,W,3], RGB. A slot that is absent is a missing camera.
    state: f32[S], in the order of the checkpoint's norm statistics.
    stamp_s: time of the oldest input, in the clock of the caller.
    input_stamps_s: of each input, by camera slot or 'state', where they are known.
    """

    images: Mapping[str, U8]
    state: F32
    prompt: str
    stamp_s: float
    input_stamps_s: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelInputs:
    """One observation as the model takes it (no batch axis).

    images: pixels u8[V,3,S,S], or what they stand for, f32[V,3,S,S] in [-1,1]
    (`model.pixels.in_model_range`); image_mask: bool[V], false where a camera is missing;
    tokens: i32[L], right-padded with 0; token_mask: bool[L].
    frames: by camera, u8[H,W,3] as it came or None, for an engine with `resizes_frames`; `images`
    is empty then. () where images are resized.
    """

    images: U8 | F32
    image_mask: Bool
    tokens: I32
    token_mask: Bool
    frames: tuple[U8 | None, ...] = ()


@dataclass(frozen=True)
class PrefixKV:
    """Keys and values of the prefix: a view into buffers that the backend owns.

    Valid until the backend's next `prefill` into the same slot: the next one, or for a
    pipelined backend the one after it. `denoise` refuses a stale `generation` with
    `StalePrefixError`, and on a pipelined GPU it is what waits for the device to fill it.

    keys, values: [layers,1,kv_heads,P,D] on the backend's device, RoPE already in keys.
    pad_mask: bool[1,P] on the backend's device.
    observed_at_s: `stamp_s` of the observation it was made from.
    """

    keys: Any
    values: Any
    pad_mask: Any
    observed_at_s: float
    generation: int


@dataclass(frozen=True)
class Guidance:
    """Actions that a denoising is pulled towards, because the robot will have executed them.

    actions: f32[H,32], normalised, finite; rows of weight 0 carry no meaning.
    weights: f32[H] in [0,1]: 1 is certain to have been executed, 0 leaves the row free.
    max_weight: bound of the pull on the velocity, whatever the flow's time says.
    clean_rows: leading rows given as they are, at the flow's time 0, to a checkpoint that was
    trained with such a prefix; 0 for one that was not.
    """

    actions: F32
    weights: F32
    max_weight: float = 5.0
    clean_rows: int = 0


@dataclass(frozen=True)
class FrameTiming:
    """Where one frame's time went, in ms; a stage that did not run is 0.

    `prefix_age_ms` is the age of the prefix when denoising began, on the caller's clock.
    """

    preprocess_ms: float = 0.0
    vision_ms: float = 0.0
    prefill_ms: float = 0.0
    denoise_ms: float = 0.0
    postprocess_ms: float = 0.0
    total_ms: float = 0.0
    prefix_age_ms: float = 0.0
    missed_ticks: int = 0


@dataclass(frozen=True)
class ActionChunk:
    """A trajectory of commands: `actions[k]` is the command for `observed_at_s + k * dt_s`.

    actions: f32[H,A], absolute, robot units. Between two rows a command is interpolated.
    observed_at_s: time of the observation the *prefix* was made from.
    """

    actions: F32
    dt_s: float
    observed_at_s: float
    prefix_reused: bool = False
    timing: FrameTiming | None = None

    @property
    def horizon(self) -> int:
        return int(self.actions.shape[0])

    @property
    def ends_at_s(self) -> float:
        """Time of the last command."""
        return self.observed_at_s + (self.horizon - 1) * self.dt_s


@dataclass(frozen=True)
class StepResult:
    """The outcome of one policy step: a chunk, or the reason why there is none.

    decision: 'refill: REASON', 'reuse' or 'pipelined', with what is unusual in brackets;
    'continue' or 'hold' when no chunk was wanted; '' when the step could not be made.
    refused: why no chunk may be used ('' when there is one, or none was wanted).
    notes: facts for whoever logs; the core itself never logs.
    guided_rows: rows of the chunk that were pulled towards the one before it.
    num_steps: denoise steps that were run.
    """

    chunk: ActionChunk | None
    timing: FrameTiming
    decision: str = ""
    refused: str = ""
    notes: tuple[str, ...] = ()
    num_steps: int = 0
    guided_rows: int = 0


@dataclass(frozen=True)
class BackendSpec:
    """One row of the registry: a point on engine x mlp x scale x reuse x pipelined.

    mlp: 'dense' is the model's own dtype; 'fp8_hybrid' is gate and up in FP8 E4M3; 'fp8' is every
    product of vision tower, prefix and expert.
    fp8_scale: 'static' (calibrated) or 'dynamic' where the MLP is in FP8, else ''.
    reuse_every: refill the prefix every N ticks; 1 is no reuse.
    pipelined: the prefix of a frame is computed while the frame before is denoised.
    """

    name: str
    engine: str
    mlp: str = "dense"
    fp8_scale: str = ""
    reuse_every: int = 1
    pipelined: bool = False


@dataclass(frozen=True)
class EngineOptions:
    """What is decided about engines that are built before they run.

    tensorrt_level: optimisation level of TensorRT's builder, 0 (quick to build) to 5.
    cache_dir: folder of built engines; '' for the user's cache folder. cache_limit_gib: above it
    the least recently used engines are removed.
    """

    tensorrt_level: int = 2
    cache_dir: str = ""
    cache_limit_gib: float = 64.0

    def __post_init__(self) -> None:
        if not 0 <= self.tensorrt_level <= 5:
            raise ValueError(f"wanted a TensorRT level of 0 to 5, got {self.tensorrt_level}")
        if not self.cache_limit_gib > 0:
            raise ValueError(f"wanted room for engines above 0 GiB, got {self.cache_limit_gib}")


@dataclass(frozen=True)
class Verification:
    """How an engine compares with the float32 reference on the same inputs and noise.

    Every figure is the worst of all observations. cosine: of any layer's keys or values, of the
    actions or of the flow. max_abs_error: of the commands, robot units. reason: which check of
    which layer failed, its value and its bound; '' where ok. precision: whose thresholds.
    keys_cosine, values_cosine: by layer. worst: the observation of the smallest cosine.
    seconds: that the comparison took, 0 where nobody measured.
    """

    ok: bool
    cosine: float
    max_abs_error: float
    reason: str = ""
    backend: str = ""
    precision: str = ""
    observations: int = 0
    worst: str = ""
    keys_cosine: tuple[float, ...] = ()
    values_cosine: tuple[float, ...] = ()
    actions_cosine: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class JointLimits:
    """Bounds of the commanded joints, f32[A] each, robot units (rad, m; per s, per s^2).

    `inf` means no bound; `velocity` and `acceleration` inf suit a gripper or a suction valve.
    """

    lower: F32
    upper: F32
    velocity: F32
    acceleration: F32

    def __post_init__(self) -> None:
        shapes = {k: getattr(self, k).shape for k in ("lower", "upper", "velocity", "acceleration")}
        if len(set(shapes.values())) != 1 or self.lower.ndim != 1:
            raise ValueError(f"joint limits want four vectors of one length; got shapes {shapes}")
        for name in ("lower", "upper", "velocity", "acceleration"):
            if np.isnan(getattr(self, name)).any():
                raise ValueError(f"joint limit {name!r} holds NaN; use inf for 'no bound'")
        if (self.lower > self.upper).any():
            raise ValueError(f"joint limits: lower {self.lower} exceeds upper {self.upper}")
        if (self.velocity <= 0).any() or (self.acceleration <= 0).any():
            raise ValueError("joint limits: velocity and acceleration must be positive")


class StalePrefixError(RuntimeError):
    """A prefix was used after its buffers were filled again."""


class BackendUnavailableError(RuntimeError):
    """A backend cannot run here; the message says exactly what is missing."""


class VerificationFailedError(RuntimeError):
    """An engine is not the policy; the message says which check it failed."""


class Backend(Protocol):
    """An engine that runs the model. One thread loads, calls and closes it."""

    spec: BackendSpec

    def warmup(self) -> None:
        """Compile, capture, allocate: may take minutes."""
        ...

    def prefill(self, inputs: ModelInputs, observed_at_s: float) -> PrefixKV:
        """Encode images and prompt. The result is valid until its slot is filled again."""
        ...

    def denoise(
        self, prefix: PrefixKV, noise: F32, num_steps: int, guidance: Guidance | None = None
    ) -> F32:
        """Integrate the flow from `noise`, f32[H,32], to normalised actions, f32[H,32].

        Guidance whose weights are all 0 changes no bit of the result.
        """
        ...

    def stage_times_ms(self) -> Mapping[str, float]:
        """Time of the last 'vision', 'prefill' and 'denoise'; may wait for the device."""
        ...

    def close(self) -> None:
        """Free the device's memory; the backend is unusable afterwards."""
        ...


@runtime_checkable
class KeepsVision(Protocol):
    """What a `Backend` may be able to do too: keep the vision tokens of some cameras."""

    def prefill_keeping(self, inputs: ModelInputs, observed_at_s: float, keep: Bool) -> PrefixKV:
        """As `prefill`, but the cameras of `keep`, bool[V], are not looked at: their tokens are
        those of the prefill before. ValueError for a camera that it did not hold."""
        ...
