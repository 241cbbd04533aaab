"""The router nodes of one graph: what each has learned, and the random numbers that choose."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from penstock.core.errors import InvalidInput
from penstock.graphs import bandit
from penstock.graphs.bandit import Way
from penstock.graphs.definition import Graph, Node


class Bandits:
    """Lives as long as the loaded graph."""

    def __init__(self, graph: Graph) -> None:
        self.ways: dict[str, list[Way]] = {
            name: [Way() for _ in node.steps] for name, node in graph.nodes.items() if node.bandit is not None
        }
        self.on_learned: Callable[[], None] = lambda: None
        seeds = [node.bandit.seed for node in graph.nodes.values() if node.bandit and node.bandit.seed is not None]
        self.random = random.Random(seeds[0]) if seeds else random.SystemRandom()

    def choose(self, node: Node) -> int:
        """The index of the step to take."""
        assert node.bandit is not None
        return bandit.choose(node.bandit, self.ways[node.name], self.random)

    def draw(self, node: Node) -> int:
        """A step's index, by weight."""
        total = sum(step.weight for step in node.steps)
        point, at = self.random.random() * total, 0.0
        for index, step in enumerate(node.steps):
            at += step.weight
            if point < at:
                return index
        return max(index for index, step in enumerate(node.steps) if step.weight > 0)

    def learn(self, routes: Mapping[str, int], reward: float, trials: float = 1.0) -> int:
        """Adds a reward for the ways that were taken; gives back how many nodes learned. Raises: InvalidInput."""
        known = {name: index for name, index in routes.items() if name in self.ways}
        for name, index in known.items():
            if not 0 <= index < len(self.ways[name]):
                raise InvalidInput(f"router {name!r} has no way {index}; it has {len(self.ways[name])}")
        for name, index in known.items():
            bandit.learn(self.ways[name], index, reward, trials)
        if known:
            self.on_learned()
        return len(known)

    def state(self) -> dict[str, list[dict[str, float]]]:
        """What is known of each way, by node."""
        return {
            name: [{"trials": way.trials, "rewards": way.rewards, "mean": way.mean} for way in ways]
            for name, ways in self.ways.items()
        }
