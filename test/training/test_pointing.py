"""The auxiliary head: right answers cost nothing, unseen objects count for nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from thor_policy_ros.training.pointing import PointingHead

GRID = 4


def transparent_head() -> PointingHead:
    """A head whose outputs are the first five hidden numbers."""
    head = PointingHead(5, GRID)
    with torch.no_grad():
        head.score.weight.copy_(torch.eye(5)[:1])
        head.detail.weight.copy_(torch.eye(5)[1:])
        for layer in (head.score, head.detail):
            layer.bias.zero_()
    return head


def perfect_hidden() -> Tensor:
    """One image, one camera: patch (row 2, column 1) is sure, and knows place and velocity."""
    hidden = torch.zeros(1, 1, GRID * GRID, 5)
    hidden[0, 0, 2 * GRID + 1] = torch.tensor([50.0, 0.25, -0.25, 0.3, -0.7])
    return hidden


UV = torch.tensor([[[(1 + 0.75) / GRID, (2 + 0.25) / GRID]]])
VELOCITY = torch.tensor([[0.3, -0.7]])


def test_the_right_answer_costs_nothing() -> None:
    assert float(transparent_head().loss(perfect_hidden(), UV, VELOCITY).detach()) < 1e-6


def test_each_mistake_costs() -> None:
    head, hidden = transparent_head(), perfect_hidden()
    elsewhere = head.loss(hidden, UV + 1 / GRID, VELOCITY)
    off_centre = head.loss(hidden, UV + 0.2 / GRID, VELOCITY)
    too_fast = head.loss(hidden, UV, VELOCITY * 1.5)
    assert float(elsewhere.detach()) > 10
    assert 0.05 < float(off_centre.detach()) < 0.2
    assert 0.05 < float(too_fast.detach()) < 0.5


def test_a_camera_that_does_not_see_it_is_left_out() -> None:
    head = transparent_head()
    hidden = perfect_hidden().repeat(1, 3, 1, 1).requires_grad_()
    unseen = torch.tensor([[[torch.nan, torch.nan], [1.2, 0.5]]])
    loss = head.loss(hidden, torch.cat((unseen, UV), 1), VELOCITY)
    loss.backward()
    assert float(loss.detach()) < 1e-6
    assert hidden.grad is not None and hidden.grad.isfinite().all()
    nothing = head.loss(hidden[:, :1], unseen[:, :1], VELOCITY)
    assert float(nothing.detach()) == 0
