"""The pieces of the agent by closed forms, and that what searches finds more than chance does."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_prune.search.amc import AMC
from lightning_prune.search.ddpg import Replay, Steps, follow_, td_targets, truncated_normal
from lightning_prune.search.evolution import Chance, Evolution


@pytest.mark.parametrize(("mean", "sigma"), [(0.3, 0.5), (0.0, 0.2), (1.0, 0.05), (0.9, 1e-6)])
def test_draws_are_of_the_normal_distribution_cut_off(mean: float, sigma: float) -> None:
    uniform = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    drawn = truncated_normal(torch.full_like(uniform, mean), sigma, uniform)
    assert bool(((drawn >= 0) & (drawn <= 1)).all())
    normal = torch.distributions.Normal(torch.tensor(mean, dtype=torch.float64), sigma)
    low, high = normal.cdf(torch.zeros(1)), normal.cdf(torch.ones(1))
    torch.testing.assert_close((normal.cdf(drawn) - low) / (high - low), uniform, atol=1e-6, rtol=0)
    density = [math.exp(-(((x - mean) / sigma) ** 2) / 2) / math.sqrt(2 * math.pi) for x in (0.0, 1.0)]
    expected = mean + sigma * (density[0] - density[1]) / float(high - low)
    assert float(drawn.mean()) == pytest.approx(expected, abs=1e-4)


def test_noise_without_a_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sigma=0\.0 must be positive"):
        truncated_normal(torch.zeros(1), 0.0, torch.zeros(1))


def test_the_last_step_of_an_episode_looks_no_further() -> None:
    reward, following = torch.tensor([1.0, 2.0]), torch.tensor([10.0, math.nan])
    assert td_targets(reward, 0.5, following, torch.tensor([False, True]), 0.9).tolist() == [9.5, 1.5]


def test_targets_follow_geometrically() -> None:
    source, target = nn.Linear(2, 3), nn.Linear(2, 3)
    start = target.weight.detach().clone()
    for _ in range(5):
        follow_(target, source, 0.1)
    expected = source.weight + 0.9**5 * (start - source.weight)
    torch.testing.assert_close(target.weight, expected)
    assert target.weight.requires_grad


def test_the_buffer_holds_the_last_steps_together() -> None:
    replay = Replay(3)
    for i in range(5):
        x = torch.tensor([float(i)])
        replay.add(Steps(x[None], x, x, x[None] + 1, x > 3))
    assert replay.held is not None
    assert replay.held.action.tolist() == [2, 3, 4]
    drawn = replay.draw(20, torch.Generator().manual_seed(0))
    assert torch.equal(drawn.state[:, 0], drawn.action)
    assert torch.equal(drawn.following[:, 0], drawn.reward + 1)
    assert torch.equal(drawn.done, drawn.action > 3)


def test_the_agent_sees_what_is_gone_and_what_is_to_come() -> None:
    agent = AMC(torch.zeros(3, 1), torch.tensor([1.0, 2.0, 1.0]), 10, torch.Generator())
    seen = agent.states(torch.tensor([0.5, 1.0, 0.2]))
    expected = torch.tensor([[0, 0, 0.75, 0], [0, 0.125, 0.25, 0.5], [0, 0.625, 0, 1]])
    torch.testing.assert_close(seen, expected)


GOAL = torch.tensor([0.1, 0.9, 0.2, 0.8], dtype=torch.float64)
Make = Callable[[torch.Generator], Chance | AMC]
SEARCHES: dict[str, Make] = {
    "chance": lambda generator: Chance(len(GOAL), generator),
    "evolution": lambda generator: Evolution(len(GOAL), generator),
    "amc": lambda generator: AMC(torch.eye(4), torch.ones(4), 100, generator, hidden=64, lr=(1e-3, 1e-2)),
}


def last_values(make: Make, seed: int, count: int = 100) -> list[float]:
    """The values of the last 20 candidates; the goal has 0, others less."""
    searcher = make(torch.Generator().manual_seed(seed))
    values = []
    for _ in range(count):
        actions: Tensor = searcher.propose()
        assert actions.shape == GOAL.shape
        assert bool(((actions >= 0) & (actions <= 1)).all())
        values.append(-float((actions - GOAL).square().sum()))
        searcher.learn(actions, values[-1])
    return values[-20:]


@pytest.mark.parametrize("name", ["evolution", "amc"])
def test_searches_come_nearer_than_chance(name: str) -> None:
    found, chance = (torch.tensor(last_values(SEARCHES[which], 0)) for which in (name, "chance"))
    assert float(found.mean()) > 0.5 * float(chance.mean())  # errors of less than half


@pytest.mark.parametrize("name", SEARCHES)
def test_a_seed_gives_the_same_and_leaves_the_global_state_alone(name: str) -> None:
    torch.manual_seed(3)
    first = last_values(SEARCHES[name], 0, 40)
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(1))
    torch.manual_seed(4)
    assert last_values(SEARCHES[name], 0, 40) == first
    assert last_values(SEARCHES[name], 1, 40) != first
