"""Flow matching: times, schedule, loss, and that a toy learns, the same way every time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.demo_training import toy_config, toy_data
from torch import Generator

from thor_policy_ros.model.pi05 import Pi05
from thor_policy_ros.training.demo_tokenizer import build_demo_tokenizer
from thor_policy_ros.training.flow_trainer import (
    FlowTrainer,
    Recipe,
    beta_times,
    encode,
    flow_loss,
    learning_rate,
    with_prefixes,
)
from thor_policy_ros.training.frames import Frames, split_frames
from thor_policy_ros.training.prompts import PromptTable

CONFIG = toy_config()
RECIPE = Recipe(
    steps=30, batch_size=16, draws=2, learning_rate=3e-3, warmup_steps=5, report_every=10
)


@pytest.fixture(scope="module")
def split() -> tuple[Frames, Frames]:
    return split_frames(toy_data(), CONFIG, "cpu")[:2]


def trainer_of(split: tuple[Frames, Frames], recipe: Recipe = RECIPE) -> FlowTrainer:
    prompts = PromptTable(build_demo_tokenizer(), 5, CONFIG.model.max_token_len, "cpu")
    return FlowTrainer(CONFIG, recipe, *split, prompts)


def test_times_follow_the_beta_distribution() -> None:
    times = beta_times((20000,), Generator().manual_seed(0))
    assert float(times.min()) >= 0.001 and float(times.max()) <= 1.0
    assert float(times.mean()) == pytest.approx(0.6 * 0.999 + 0.001, abs=0.01)
    below_half = float((times < 0.5).float().mean())
    assert below_half == pytest.approx(0.5**1.5, abs=0.01)


def test_the_learning_rate_rises_and_falls() -> None:
    recipe = Recipe(steps=1000, warmup_steps=100, learning_rate=1.0)
    rates = [learning_rate(step, recipe) for step in range(1, 1001)]
    assert rates[0] == pytest.approx(0.01) and rates[49] == pytest.approx(0.5)
    assert max(rates) == pytest.approx(1.0) and rates.index(max(rates)) == 99
    assert rates[99:] == sorted(rates[99:], reverse=True)
    assert rates[-1] == pytest.approx(0.01)


def test_the_loss_is_zero_for_the_true_velocity(monkeypatch: pytest.MonkeyPatch) -> None:
    actions, noise, t = torch.randn(3, 10, 5), torch.randn(3, 2, 10, 32), torch.rand(3, 2)
    padded = torch.nn.functional.pad(actions, (0, 27))[:, None]
    points = []

    def true_velocity(_: object, x_t: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        points.append(x_t)
        assert times is t
        return noise - padded

    model = Pi05(CONFIG.model)
    monkeypatch.setattr(model, "velocity", true_velocity)
    tokens = torch.ones(3, 4, dtype=torch.long)
    encoded = encode(model, torch.zeros(3, 2, 3, 16, 16), tokens, tokens.bool())
    assert float(flow_loss(model, encoded, actions, noise, t)) == 0
    mix = t[:, :, None, None]
    torch.testing.assert_close(points[0], mix * noise + (1 - mix) * padded)


def test_a_false_velocity_costs_more_in_the_rows_that_are_executed() -> None:
    torch.manual_seed(0)
    model = Pi05(CONFIG.model)
    torch.nn.init.zeros_(model.action_out_proj.weight)
    torch.nn.init.zeros_(model.action_out_proj.bias)
    tokens = torch.ones(1, 4, dtype=torch.long)
    encoded = encode(model, torch.zeros(1, 2, 3, 16, 16), tokens, tokens.bool())
    noise, t = torch.zeros(1, 1, 10, 32), torch.ones(1, 1)
    early, late, unused = torch.zeros(3, 1, 10, 5)
    early[:, 0], late[:, 9] = 1.0, 1.0
    loss = [float(flow_loss(model, encoded, a, noise, t).detach()) for a in (early, late, unused)]
    assert loss[0] == pytest.approx(4 * loss[1]) and loss[2] == 0


def test_a_toy_learns_and_the_curve_tells(split: tuple[Frames, Frames]) -> None:
    heard = []
    curve = trainer_of(split).train(heard.append)
    assert [report.step for report in curve] == [10, 20, 30]
    assert heard == curve
    assert curve[-1].flow_loss < 0.9 * curve[0].flow_loss
    assert curve[-1].pointing_loss < curve[0].pointing_loss
    assert curve[-1].near_error < curve[0].near_error


def test_training_is_reproducible(split: tuple[Frames, Frames]) -> None:
    recipe = replace(RECIPE, steps=4, report_every=4)
    first, second, other = (trainer_of(split, replace(recipe, seed=seed)) for seed in (0, 0, 1))
    curves = [t.train(lambda _: None)[0] for t in (first, second, other)]
    assert replace(curves[0], seconds=0) == replace(curves[1], seconds=0)
    assert curves[0].flow_loss != curves[2].flow_loss
    for one, same in zip(first.averaged.parameters(), second.averaged.parameters(), strict=True):
        assert torch.equal(one, same)


def test_the_average_lags_behind_the_model(split: tuple[Frames, Frames]) -> None:
    trainer = trainer_of(split)
    start = trainer.averaged.action_in_proj.weight.clone()
    trainer.train(lambda _: None)
    average = trainer.averaged.action_in_proj.weight
    model = trainer.model.action_in_proj.weight
    assert 0 < float((average - start).norm()) < float((model.detach() - start).norm())
    assert not average.requires_grad


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_recorded_kernels_learn_as_launched_ones_do() -> None:
    split = split_frames(toy_data(), CONFIG, "cuda")[:2]
    prompts = PromptTable(build_demo_tokenizer(), 5, CONFIG.model.max_token_len, "cuda")
    losses = [
        FlowTrainer(CONFIG, replace(RECIPE, cuda_graphs=graphs), *split, prompts)
        .train(lambda _: None)[-1]
        .flow_loss
        for graphs in (False, True)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.2)


def test_given_rows_are_at_time_zero_and_no_more_than_asked_for() -> None:
    t = torch.full((400, 3), 0.7)
    rows = with_prefixes(t, 10, 4, Generator().manual_seed(0))
    given = rows == 0
    assert set(given.sum(-1).flatten().tolist()) == {0, 1, 2, 3, 4}
    assert not (given[..., 1:] & ~given[..., :-1]).any(), "leading rows alone"
    assert (rows[~given] == 0.7).all()


def test_given_rows_are_seen_clean_and_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """A velocity that is wrong in the given rows alone costs nothing."""
    generator = Generator().manual_seed(0)
    actions = torch.randn(2, 10, 5, generator=generator)
    noise = torch.randn(2, 3, 10, 32, generator=generator)
    t = with_prefixes(torch.full((2, 3), 0.5), 10, 6, generator)
    padded = torch.nn.functional.pad(actions, (0, 27))[:, None].expand_as(noise)
    seen = {}

    def velocity(_: object, x_t: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        seen["x"] = x_t
        return torch.where((times == 0)[..., None], 99.0, noise - padded)

    model = Pi05(toy_config().model)
    monkeypatch.setattr(model, "velocity", velocity)
    assert float(flow_loss(model, None, actions, noise, t)) == 0.0  # type: ignore[arg-type]
    given = (t == 0)[..., None].expand_as(noise)
    assert torch.equal(seen["x"][given], padded[given])


def test_a_toy_trained_with_prefixes_learns_too(split: tuple[Frames, Frames]) -> None:
    trainer = trainer_of(split, replace(RECIPE, max_prefix_rows=4))
    curve = trainer.train(lambda report: None)
    assert curve[-1].flow_loss < curve[0].flow_loss
