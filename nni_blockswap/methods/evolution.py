"""Regularised evolution: tournaments, mutation and crossover that keep to the budget exactly, and death by age.

The population is a queue (Real et al., *Regularized Evolution for Image Classifier Architecture Search*, AAAI 2019):
a child of the best of a random few joins it, the oldest leaves. Children are drawn from the table of choices,
narrowed to what they may inherit: every architecture of it that meets the budget is equally likely, none else is
possible, and none is drawn and thrown away. One parent is in it, so there always is one.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from nni_blockswap.cost.table import Indices
from nni_blockswap.methods.base import Problem, Request
from nni_blockswap.methods.sampler import Sampler
from nni_blockswap.methods.uniform import draw

_POPULATION = 0.2  # share of the samples
_MOST_ALIVE = 100
_TOURNAMENT = 0.2  # share of the population that a parent is the best of
_GENERATIONS = 20  # in which the children come
_LEAST = 8  # in a generation: work for all processes
_MOST_MUTATED = 4  # blocks
_MOST_CHOICES = 2**13  # of a narrowed table: under several limits they are listed
_TRIES = 20  # for a child that is new


class Evolution:
    """Scores a fifth of the samples, at most 100, drawn uniformly; then children, in twenty generations or fewer."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._rng = np.random.default_rng([problem.seed, 1])
        alive = min(max(math.ceil(_POPULATION * problem.samples), 2), _MOST_ALIVE, problem.samples)
        self._first = draw(replace(problem, samples=alive))
        self._population: deque[Indices] = deque(maxlen=len(self._first))
        self._fitness: dict[Indices, float] = {}

    def ask(self) -> Request | None:
        """Children differ from all that was scored; where none can be found, the search is over."""
        if not self._fitness:
            return Request(self._first)
        left = self._problem.samples - len(self._fitness)
        a_generation = max((self._problem.samples - len(self._first)) // _GENERATIONS, _LEAST)
        known, children = set(self._fitness), list[Indices]()
        for _ in range(min(a_generation, left)):
            child = next((one for number in range(_TRIES) if (one := self._child(number)) not in known), None)
            if child is not None:
                known.add(child)
                children.append(child)
        return Request(tuple(children)) if children else None

    def tell(self, scores: Mapping[Indices, float]) -> None:
        for row, score in scores.items():
            self._fitness[row] = self._problem.merit(score)
            self._population.append(row)

    def _child(self, failed: int) -> Indices:
        """One that may be known; after ``failed`` such ones it may change in more blocks."""
        parent = self._parent()
        if self._rng.random() < 0.5:
            return self._drawn(parent, crossover(parent, self._parent()))
        blocks = self._rng.permutation(len(parent))[: self._rng.integers(1, _MOST_MUTATED + 1 + failed)]
        every = [range(len(names)) for names in self._problem.table.candidates]
        return self._drawn(parent, [every[b] if b in blocks else (own,) for b, own in enumerate(parent)])

    def _parent(self) -> Indices:
        """The best of a random few."""
        size = max(math.ceil(_TOURNAMENT * len(self._population)), 2)
        few = self._rng.integers(len(self._population), size=size).tolist()
        return max((self._population[number] for number in few), key=lambda row: self._fitness[row])

    def _drawn(self, parent: Indices, choices: Sequence[Sequence[int]]) -> Indices:
        """One of the architectures with ``choices`` (positions, a sequence a block) that meet the budget."""
        keep = list(choices)
        free = [b for b in self._rng.permutation(len(parent)).tolist() if len(keep[b]) > 1]
        while math.prod(len(keep[b]) for b in free) > _MOST_CHOICES:
            block = free.pop()
            keep[block] = (parent[block],)
        ((*picks,),) = Sampler(self._problem.table.kept(keep), self._problem.budget).sample(1, self._rng)
        return tuple(keep[block][pick] for block, pick in enumerate(picks))


def crossover(one: Indices, other: Indices) -> list[Sequence[int]]:
    """What a child of two may have in each block.

    Example:
        >>> crossover((3, 1), (3, 2))
        [(3,), (1, 2)]
    """
    return [(a,) if a == b else (a, b) for a, b in zip(one, other, strict=True)]
