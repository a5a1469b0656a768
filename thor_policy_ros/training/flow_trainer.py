"""Flow matching from scratch: the loss, the optimiser, the moving average, the loop.

Reproducible: all randomness comes from one generator seeded by the recipe (on a GPU up to
the order of floating-point sums).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from thor_policy_ros.model.config import Pi05Config, PolicyConfig
from thor_policy_ros.model.pi05 import Encoded, Pi05
from thor_policy_ros.training.batches import draw_batch
from thor_policy_ros.training.frames import Frames
from thor_policy_ros.training.pointing import PointingHead
from thor_policy_ros.training.prompts import PromptTable

PADDING_WEIGHT = 0.1
"""Loss weight of the model's unused action dimensions: they only have to stay noise-free."""
HELD_OUT_BATCH = 256
LAST_ROW_WEIGHT = 0.25
"""Loss weight of a chunk's last row; the first has 1, and it falls evenly in between."""


@dataclass(frozen=True)
class Recipe:
    """How to train.

    draws: noise draws per frame over one prefix. report_every: in steps. cuda_graphs: replay
    recorded kernels instead of launching each anew (21 against 28 ms a step on an H200).
    max_prefix_rows: of each draw 0 to so many leading rows are given as they are, at the flow's
    time 0, and the rest is learnt as their continuation: what a robot will have executed while
    the chunk was inferred (real-time chunking in training). 0 trains none.
    """

    steps: int = 13000
    batch_size: int = 256
    draws: int = 4
    learning_rate: float = 1.5e-3
    warmup_steps: int = 200
    weight_decay: float = 0.01
    gradient_norm: float = 1.0
    ema_decay: float = 0.999
    pointing_weight: float = 0.1
    report_every: int = 200
    cuda_graphs: bool = False
    seed: int = 0
    max_prefix_rows: int = 0

    def to_json(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class Report:
    """One point of the training curve. Errors are of the averaged weights, held-out episodes.

    near_error, far_error: mean absolute error of normalised joint actions sampled in 3 steps,
    over the first 3 rows and the last; suction_error: fraction of wrong suction commands.
    """

    step: int
    seconds: float
    learning_rate: float
    flow_loss: float
    pointing_loss: float
    near_error: float
    far_error: float
    suction_error: float

    def to_json(self) -> dict[str, float]:
        return asdict(self)


class Losses(nn.Module):
    """The model and the pointing head as one function from a batch to two losses.

    Tensors in and out, no random numbers: what CUDA graphs can record.
    """

    def __init__(self, config: Pi05Config) -> None:
        super().__init__()
        self.model = Pi05(config)
        grid = config.vision.image_size // config.vision.patch_size
        self.head = PointingHead(config.language.width, grid)

    def forward(self, noise: Tensor, t: Tensor, *batch: Tensor) -> tuple[Tensor, Tensor]:
        """noise: f32[B,K,H,A], t: f32[B,K] or, with rows given at time 0, f32[B,K,H]; batch: a
        Batch's fields. Flow, pointing: f32[]."""
        images, tokens, token_mask, actions, target_uv, velocity = batch
        encoded = encode(self.model, images, tokens, token_mask, with_hidden=True)
        flow = flow_loss(self.model, encoded, actions, noise, t)
        cameras, patches = images.shape[1], self.model.config.vision.num_tokens
        assert encoded.hidden is not None
        image_tokens = encoded.hidden[:, : cameras * patches].unflatten(1, (cameras, patches))
        return flow, self.head.loss(image_tokens, target_uv, velocity)


class FlowTrainer:
    """Owns the model, its moving average, the optimiser and the generator.

    Not for threads. `train` returns the curve; `averaged` is the model to keep.
    """

    def __init__(
        self, config: PolicyConfig, recipe: Recipe, frames: Frames, held_out: Frames,
        prompts: PromptTable,
    ) -> None:  # fmt: skip
        torch.manual_seed(recipe.seed)
        device = frames.device
        self.config, self.recipe, self.prompts = config, recipe, prompts
        self.frames, self.held_out = frames, held_out
        self.generator = Generator(device).manual_seed(recipe.seed)
        losses = Losses(config.model).to(device)
        self.model = losses.model
        self.averaged = copy.deepcopy(self.model).eval().requires_grad_(False)
        self._parameters = list(losses.parameters())
        self.optimiser = _adamw(self._parameters, recipe, fused=device.type == "cuda")
        self._losses: Callable[..., Any] = losses
        if recipe.cuda_graphs:
            sample = tuple(x.clone() for x in self._draw())
            self._losses = torch.cuda.make_graphed_callables(
                losses, sample, allow_unused_input=True
            )

    def train(self, on_report: Callable[[Report], None]) -> list[Report]:
        """Run every step of the recipe; `on_report` hears of each point of the curve."""
        curve: list[Report] = []
        started = time.perf_counter()
        sums = torch.zeros(2, device=self.frames.device)
        for step in range(1, self.recipe.steps + 1):
            sums += self._step(step)
            if step % self.recipe.report_every == 0 or step == self.recipe.steps:
                since = step - (curve[-1].step if curve else 0)
                curve.append(self._report(step, time.perf_counter() - started, sums / since))
                sums.zero_()
                on_report(curve[-1])
        return curve

    def _step(self, step: int) -> Tensor:
        """One update; returns the flow and pointing losses, f32[2]."""
        rate = learning_rate(step, self.recipe)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        flow, pointing = self._losses(*self._draw())
        self.optimiser.zero_grad(set_to_none=True)
        (flow + self.recipe.pointing_weight * pointing).backward()
        nn.utils.clip_grad_norm_(self._parameters, self.recipe.gradient_norm)
        self.optimiser.step()
        self._average(step)
        return torch.stack((flow.detach(), pointing.detach()))

    def _draw(self) -> tuple[Tensor, ...]:
        """Noise, times and a batch: what `Losses` takes."""
        size, draws = self.recipe.batch_size, self.recipe.draws
        batch = draw_batch(self.frames, self.prompts, size, self.generator)
        t = beta_times((size, draws), self.generator)
        horizon = self.config.model.action_horizon
        if self.recipe.max_prefix_rows:
            t = with_prefixes(t, horizon, self.recipe.max_prefix_rows, self.generator)
        shape = (size, draws, horizon)
        return gaussian(shape, self.model, self.generator), t, *batch

    @torch.no_grad()
    def _average(self, step: int) -> None:
        decay = min(self.recipe.ema_decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(
            list(self.averaged.parameters()), list(self.model.parameters()), 1 - decay
        )

    @torch.no_grad()
    def _report(self, step: int, seconds: float, losses: Tensor) -> Report:
        generator = Generator(self.frames.device).manual_seed(self.recipe.seed)
        batch = draw_batch(self.held_out, self.prompts, HELD_OUT_BATCH, generator, augment=False)
        noise = gaussian(batch.actions.shape[:2], self.averaged, generator)
        encoded = encode(self.averaged, batch.images, batch.tokens, batch.token_mask)
        sampled = self.averaged.sample(encoded, noise, 3)
        real = sampled[..., : self.config.action_dim]
        error = (real - batch.actions).abs()[..., :-1]
        wrong = (real[..., -1] > 0) != (batch.actions[..., -1] > 0)
        flow, pointing = (float(x) for x in losses)
        return Report(
            step=step,
            seconds=round(seconds, 1),
            learning_rate=learning_rate(step, self.recipe),
            flow_loss=flow,
            pointing_loss=pointing,
            near_error=float(error[:, :3].mean()),
            far_error=float(error[:, -1].mean()),
            suction_error=float(wrong.float().mean()),
        )


def flow_loss(model: Pi05, encoded: Encoded, actions: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Mean squared error of velocities at K random times per observation.

    actions: f32[B,H,A'], the robot's dimensions (the rest of the model's are trained to 0);
    noise: f32[B,K,H,A]; t: f32[B,K], or f32[B,K,H] where rows of time 0 are given and are not
    judged.
    """
    horizon, used = actions.shape[1:]
    padded = torch.nn.functional.pad(actions, (0, noise.shape[-1] - used))[:, None]
    mix = t[:, :, None, None] if t.ndim == 2 else t[..., None]
    velocity = model.velocity(encoded, mix * noise + (1 - mix) * padded, t)
    rows = torch.linspace(1.0, LAST_ROW_WEIGHT, horizon, device=actions.device)[:, None]
    squared = (velocity - (noise - padded)).square() * (rows / rows.mean())
    if t.ndim == 3:
        judged = (t > 0).float()[..., None]
        squared = squared * (judged / judged.mean())
    return squared[..., :used].mean() + PADDING_WEIGHT * squared[..., used:].mean()


def beta_times(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Times drawn as Beta(1.5, 1) * 0.999 + 0.001: more of them near noise (t = 1)."""
    uniform = torch.rand(shape, generator=generator, device=generator.device)
    return uniform ** (1 / 1.5) * 0.999 + 0.001


def with_prefixes(t: Tensor, horizon: int, most: int, generator: Generator) -> Tensor:
    """f32[B,K] -> f32[B,K,H]: each draw's first 0 to `most` rows, evenly drawn, at time 0."""
    rows = torch.randint(0, most + 1, t.shape, generator=generator, device=t.device)
    given = torch.arange(horizon, device=t.device) < rows[..., None]
    return torch.where(given, 0.0, t[..., None])


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine down to 1 % of the peak."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * step / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return recipe.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def encode(
    model: Pi05, images: Tensor, tokens: Tensor, token_mask: Tensor, with_hidden: bool = False
) -> Encoded:
    """The prefix with every camera present."""
    image_mask = torch.ones(images.shape[:2], dtype=torch.bool, device=images.device)
    return model.prefill(images, image_mask, tokens, token_mask, with_hidden)


def gaussian(shape: tuple[int, ...], model: Pi05, generator: Generator) -> Tensor:
    """Noise f32[*shape,A] on the generator's device."""
    return torch.randn(
        (*shape, model.config.action_dim), generator=generator, device=generator.device
    )


def _adamw(parameters: list[nn.Parameter], recipe: Recipe, fused: bool) -> torch.optim.AdamW:
    """AdamW that decays matrices alone."""
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=fused)
