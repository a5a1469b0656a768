"""How far one engine's frame is from the reference's: measures, bounds and what they say.

Cosine alone is blind to a wrong scale and to a single wrong token, so the gain (least squares
factor between the two arrays) and the worst token's error are bounded too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from thor_policy_ros.types import F32

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Thresholds:
    """Bounds of every check. cosine: at least; the others: at most.

    gain: how far the factor between both arrays may be from 1. flow_gain: the same of the flow,
    which FP8's noise shortens (by 3.2 % at pi0.5's sizes with random weights). token_error: error
    of a token's keys or values over its norm (or the median norm). range_error: largest error of a
    command over half the range that its normalised action spans.
    """

    precision: str
    cosine: float
    gain: float
    flow_gain: float
    token_error: float
    range_error: float


THRESHOLDS = {
    bounds.precision: bounds
    for bounds in (
        Thresholds(
            "float32", cosine=0.99999, gain=1e-3, flow_gain=1e-3, token_error=2e-3, range_error=2e-3
        ),
        Thresholds(
            "bfloat16", cosine=0.999, gain=0.02, flow_gain=0.02, token_error=0.1, range_error=0.05
        ),
        Thresholds(
            "fp8", cosine=0.99, gain=0.03, flow_gain=0.05, token_error=0.5, range_error=0.15
        ),
    )
}


@dataclass(frozen=True)
class Frame:
    """What an engine made of one frame.

    keys, values: f32[layers,G,P,D], valid tokens alone. actions: f32[H,32], normalised; flow:
    actions less noise. commands: f32[H,A], robot units.
    """

    keys: F32
    values: F32
    actions: F32
    flow: F32
    commands: F32


@dataclass(frozen=True)
class Difference:
    """Of one frame. failures: in the order of computation, the first is nearest the cause."""

    failures: tuple[str, ...]
    keys_cosine: tuple[float, ...]
    values_cosine: tuple[float, ...]
    actions_cosine: float
    flow_cosine: float
    max_abs_error: float

    @property
    def cosine(self) -> float:
        """The smallest; NaN counts as -1."""
        found = (*self.keys_cosine, *self.values_cosine, self.actions_cosine, self.flow_cosine)
        return min(-1.0 if np.isnan(value) else value for value in found)


def difference(ours: Frame, reference: Frame, ranges: F32, bounds: Thresholds) -> Difference:
    """ranges: f32[H,A], half the range of each command, robot units."""
    wrong_shapes = tuple(_shape_failures(ours, reference))
    if wrong_shapes:
        return Difference(wrong_shapes, (), (), float("nan"), float("nan"), float("nan"))
    error = np.abs(ours.commands.astype(np.float64) - reference.commands)
    return Difference(
        failures=tuple(_failures(ours, reference, error, ranges, bounds)),
        keys_cosine=_layer_cosines(ours.keys, reference.keys),
        values_cosine=_layer_cosines(ours.values, reference.values),
        actions_cosine=cosine(ours.actions, reference.actions),
        flow_cosine=cosine(ours.flow, reference.flow),
        max_abs_error=float(error.max()),
    )


def cosine(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """Of two arrays taken as vectors, in float64; 1 where both are zero, 0 where one is."""
    x, y = _vector(a), _vector(b)
    lengths = float(np.linalg.norm(x) * np.linalg.norm(y))
    if lengths == 0.0:
        return float(np.array_equal(x, y))
    return float(x @ y) / lengths


def _gain(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """The factor f for which f*b is nearest to a; 1 where both are zero."""
    x, y = _vector(a), _vector(b)
    power = float(y @ y)
    if power == 0.0:
        return 1.0 if not x.any() else float("inf")
    return float(x @ y) / power


def _token_errors(ours: F32, reference: F32) -> F64:
    """f64[P] from one layer's f32[G,P,D]."""
    lengths = np.linalg.norm(reference.astype(np.float64), axis=(0, 2))
    errors: F64 = np.linalg.norm(ours.astype(np.float64) - reference, axis=(0, 2))
    return errors / np.maximum(np.maximum(lengths, np.median(lengths)), 1e-30)


def _shape_failures(ours: Frame, reference: Frame) -> Iterator[str]:
    for name in ("keys", "values", "actions", "commands"):
        came, wanted = getattr(ours, name).shape, getattr(reference, name).shape
        if came != wanted:
            yield f"shape of {name} is {came}, wanted {wanted}"


def _failures(
    ours: Frame, reference: Frame, error: F64, ranges: F32, bounds: Thresholds
) -> Iterator[str]:
    for layer in range(ours.keys.shape[0]):
        for name in ("keys", "values"):
            pair = getattr(ours, name)[layer], getattr(reference, name)[layer]
            yield from _tensor_failures(f"{name} of layer {layer}", *pair, bounds, bounds.gain)
            yield from _token_failures(f"{name} of layer {layer}", *pair, bounds)
    yield from _tensor_failures("actions", ours.actions, reference.actions, bounds, bounds.gain)
    flows = ours.flow, reference.flow
    yield from _tensor_failures("flow (actions less noise)", *flows, bounds, bounds.flow_gain)
    yield from _command_failures(error, ranges, bounds)


def _tensor_failures(
    name: str, ours: F32, reference: F32, bounds: Thresholds, most: float
) -> Iterator[str]:
    """most: how far the factor between both may be from 1."""
    broken = int(np.count_nonzero(~np.isfinite(ours)))
    if broken:
        yield f"{name}: {broken} of {ours.size} values are not finite"
        return
    alike, gain = cosine(ours, reference), _gain(ours, reference)
    if not alike >= bounds.cosine:
        yield f"{name}: cosine {alike:.6f}, wanted at least {bounds.cosine:g}"
    if not abs(gain - 1.0) <= most:
        yield f"{name}: scale {gain:.4f} times the reference, wanted 1 within {most:g}"


def _token_failures(name: str, ours: F32, reference: F32, bounds: Thresholds) -> Iterator[str]:
    errors = _token_errors(ours, reference)
    worst = int(np.argmax(errors))
    if errors[worst] > bounds.token_error:  # NaN is already told of
        yield (
            f"{name}: error of token {worst} is {errors[worst]:.4f} of its norm, wanted at most"
            f" {bounds.token_error:g}"
        )


def _command_failures(error: F64, ranges: F32, bounds: Thresholds) -> Iterator[str]:
    excess = error - bounds.range_error * ranges
    row, column = np.unravel_index(int(np.argmax(excess)), excess.shape)
    if excess[row, column] > 0:
        yield (
            f"commands: error {error[row, column]:.4g} (robot units) in row {row} of action"
            f" {column}, wanted at most {bounds.range_error * ranges[row, column]:.4g}"
        )


def _layer_cosines(ours: F32, reference: F32) -> tuple[float, ...]:
    return tuple(cosine(a, b) for a, b in zip(ours, reference, strict=True))


def _vector(array: npt.NDArray[Any]) -> F64:
    return array.astype(np.float64).ravel()
