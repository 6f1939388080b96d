"""AMC (He et al., ECCV 2018, arXiv 1802.03494): an agent goes through the layers and says how much of each goes."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_prune.channels.graph.cost import ChannelCost
from lightning_prune.channels.select.units import ChannelUnits
from lightning_prune.search.ddpg import Replay, Steps, follow_, td_targets, truncated_normal, two_hidden


def layer_macs(units: ChannelUnits, cost: ChannelCost) -> Tensor:
    """MACs of the modules of each layer, float64 [layers]."""
    by_module = cost.macs_by_layer()
    return torch.tensor(
        [sum(by_module.get(path, 0.0) for path in _paths(units, names)) for names in units.layers], dtype=torch.float64
    )


def _paths(units: ChannelUnits, names: tuple[str, ...]) -> list[str]:
    """Paths of the modules that hold the weights of a layer."""
    modules = dict(units.network.named_modules())
    return [name if name in modules else name.rpartition(".")[0] for name in names]


def layer_features(units: ChannelUnits, cost: ChannelCost) -> Tensor:
    """What the agent is told of each layer, from 0 to 1 over the layers: float32 [layers, 7].

    The paper's: index, filters, their channels, positions (its height and width), stride, kernel size, MACs. Of a layer
    that several weights write (a residual stream) the first weight tells, and MACs are those of all.
    """
    tensors = dict(units.network.named_parameters(remove_duplicate=False))
    modules = dict(units.network.named_modules())
    by_module, rows = cost.macs_by_layer(), []
    for index, (names, macs) in enumerate(zip(units.layers, layer_macs(units, cost).tolist(), strict=True)):
        weight = tensors.get(f"{names[0]}.weight", tensors.get(names[0]))
        assert weight is not None  # layers are named after weights, see `ChannelUnits.of`
        path = _paths(units, names)[0]
        stride = getattr(modules[path], "stride", 1)
        step = stride[0] if isinstance(stride, tuple) else stride
        kernel, positions = weight.shape[2:].numel(), by_module.get(path, 0.0) / weight.numel()
        rows.append([index, len(weight), weight.shape[1], positions, step, kernel, macs])
    table = torch.tensor(rows, dtype=torch.float64)
    low, high = table.amin(0), table.amax(0)
    return ((table - low) / (high - low).clamp_min(1e-12)).float()


class AMC:
    """The agent. The constants are the paper's and its authors' code's; what counts episodes is scaled to the budget.

    Of 400 episodes the first 100 explore with noise of constant deviation 0.5, then it falls by a twentieth each.

    Args:
        features: of each layer, see `layer_features`, [layers, features].
        macs: of each layer, for what is gone and what is to come, [layers].
        budget: number of episodes.
        generator: what is drawn from.
        hidden: width of the hidden layers.
        batch: steps of an update; one update for each layer and episode.
        keep: episodes in the replay buffer.
        lr: of the actor and the critic, Adam.
        tau: how far the target networks follow in an update.
        sigma: deviation of the noise at the start.
    """

    def __init__(
        self, features: Tensor, macs: Tensor, budget: int, generator: torch.Generator, hidden: int = 300,
        batch: int = 64, keep: int = 100, lr: tuple[float, float] = (1e-4, 1e-3), tau: float = 0.01, sigma: float = 0.5,
    ) -> None:  # fmt: skip
        self.features, self.share = features, (macs / macs.sum().clamp_min(1)).float()
        self.generator, self.batch, self.tau, self.sigma = generator, batch, tau, sigma
        self.warmup, self.decay = budget // 4, 0.95 ** (400 / budget)
        size = features.shape[1] + 3
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(1 << 31, (), generator=generator)))
            self.actor = two_hidden(size, hidden, nn.Sigmoid())
            self.critic = two_hidden(size + 1, hidden)
        self.targets = copy.deepcopy(self.actor), copy.deepcopy(self.critic)
        self.optimizers = (
            torch.optim.Adam(self.actor.parameters(), lr[0]), torch.optim.Adam(self.critic.parameters(), lr[1])
        )  # fmt: skip
        self.replay = Replay(keep * len(features))
        self.episode = 0
        self.baseline: float | None = None

    def states(self, actions: Tensor) -> Tensor:
        """What the agent sees at each layer: features, MACs that are gone, MACs to come, the action before.

        Args:
            actions: of the layers, in [0, 1], [layers]; those of a layer and behind it do not count for its state.

        Returns:
            float32 [layers, features + 3].
        """
        actions, zero = actions.float(), torch.zeros(1)
        gone = torch.cat([zero, (actions * self.share).cumsum(0)[:-1]])
        rest = 1 - self.share.cumsum(0)
        before = torch.cat([zero, actions[:-1]])
        return torch.cat([self.features, torch.stack([gone, rest, before], 1)], 1)

    @torch.no_grad()
    def propose(self) -> Tensor:
        """Actions to try, float64 [layers]: what the actor says, layer after layer, with noise."""
        sigma = max(self.sigma * self.decay ** max(0, self.episode - self.warmup), 1e-6)
        actions = torch.zeros(len(self.features), dtype=torch.float64)
        for t in range(len(actions)):
            mean = self.actor(self.states(actions)[t])[0]
            actions[t] = truncated_normal(mean, sigma, torch.rand((), generator=self.generator))
        return actions

    def learn(self, actions: Tensor, value: float) -> None:
        """An episode ends: every step of it has its value as reward, and after the warm-up the networks learn."""
        state = self.states(actions)
        done = torch.zeros(len(actions), dtype=torch.bool)
        done[-1] = True
        reward = torch.full((len(actions),), value)
        self.replay.add(Steps(state, actions.float(), reward, state.roll(-1, 0), done))
        self.episode += 1
        if self.episode > self.warmup:
            for _ in range(len(actions)):
                self._update(self.replay.draw(self.batch, self.generator))

    def _update(self, steps: Steps) -> None:
        mean = float(steps.reward.mean())
        self.baseline = mean if self.baseline is None else 0.5 * (self.baseline + mean)
        actor, critic = self.targets
        with torch.no_grad():
            following = self._worth(critic, steps.following, actor(steps.following)[:, 0])
            wanted = td_targets(steps.reward, self.baseline, following, steps.done)
        with torch.enable_grad():
            loss = F.mse_loss(self._worth(self.critic, steps.state, steps.action), wanted)
            self._step(1, loss)
            self._step(0, -self._worth(self.critic, steps.state, self.actor(steps.state)[:, 0]).mean())
        follow_(actor, self.actor, self.tau)
        follow_(critic, self.critic, self.tau)

    def _worth(self, critic: nn.Module, state: Tensor, action: Tensor) -> Tensor:
        worth: Tensor = critic(torch.cat([state, action[:, None]], 1))[:, 0]
        return worth

    def _step(self, which: int, loss: Tensor) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        self.optimizers[which].step()
