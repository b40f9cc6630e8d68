"""Scores many architectures on one super-network.

The super-network, the space itself, holds the weights of every candidate of every block. Scoring one architecture
selects its candidates and measures; no network is built for it. All architectures see the same weights and the same
minibatches (common random numbers), so that what differs between two scores is the architecture. How it is done best
is the ``engines``' affair.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from nni_blockswap.blocks.origin import is_live
from nni_blockswap.blocks.space import BlockSpace, is_of_detector
from nni_blockswap.blocks.weights import seeded
from nni_blockswap.errors import ConfigError
from nni_blockswap.scoring.engines import Work, choose, described
from nni_blockswap.scoring.engines.plain import measure
from nni_blockswap.scoring.machine import resolve_device, resolve_precision
from nni_blockswap.scoring.proxies import Proxy, Score
from nni_blockswap.scoring.proxies.fisher import FisherPotential
from nni_blockswap.scoring.settings import ScoreSettings
from nni_blockswap.scoring.workers import Workers
from nni_blockswap.seeds import derived_seed
from nni_blockswap.spaces import NETWORK, complete_args, cost_table, load_space
from nni_blockswap.tasks import Batch, Task
from nni_blockswap.tasks.classification import Classification
from nni_blockswap.tasks.loader import LoaderTask

Run = Callable[[Sequence[Mapping[str, str]]], Iterator[tuple[int, Score]]]
"""From candidates to (position, score), as they come."""


class Scorer:
    """Scores architectures of one space on fixed minibatches.

    Args:
        settings: what a score depends on.
        task: where minibatches and loss come from.
        proxy: what is measured.

    Raises:
        ConfigError: settings that do not exist, or a space whose networks are not for this task; see ``check_fit``.
        DataError: the training set is too small for the minibatches.
    """

    def __init__(self, settings: ScoreSettings, task: Task, proxy: Proxy) -> None:
        self.settings, self.task, self.proxy = settings, task, proxy
        self.engine = ""  # which one scores, and why, as soon as it is chosen
        self.space_args = complete_args(settings.space, settings.space_args)
        self.device = resolve_device(settings.device)
        self.precision = resolve_precision(settings.precision, self.device, self._is_bf16_known())
        trained = settings.train_minibatches - 1
        drawn = _drawn(task, settings, trained + settings.minibatches)
        check_fit(settings.space, self.space_args, task, drawn[0])
        self.fingerprint = "+".join(task.fingerprint(batch) for batch in drawn)[:256]
        dtype = torch.float64 if self.precision == "float64" else None
        batches = [task.to(batch, self.device, dtype) for batch in drawn]
        self.training, self.measured = batches[:trained], batches[trained:]
        self._running: tuple[int, Run] | None = None

    @property
    def init(self) -> int | None:
        """The draw of the weights that is at hand, and that the next scores come from soonest."""
        return None if self._running is None else self._running[0]

    def scores(self, init: int, candidates: Sequence[Mapping[str, str]]) -> Iterator[tuple[int, Score]]:
        """Score ``candidates`` (canonical choices by label) under the ``init``-th draw of the weights.

        Super-network, engine and processes are kept for the next call, unless that is for another draw.

        Yields:
            (position in ``candidates``, score), as they come.
        """
        if self._running is None or self._running[0] != init:
            self.close()
            self._running = init, self._started(init)
        try:
            yield from self._running[1](candidates)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the processes that scored, and free the super-network."""
        self._running = None

    def _started(self, init: int) -> Run:
        """What scores candidates under the ``init``-th draw; super-network, engine and processes last until it goes."""
        work = self.work(init)
        engine = choose(work)
        self.engine = self.engine or described(engine, work)
        start = engine.start(work)
        if engine.parallel:
            del work  # with the super-network that the engine was chosen by: it has one of its own
            return Workers(start, start(), self._processes() - 1).score
        measured = start()
        return lambda candidates: ((position, measured(choices)) for position, choices in enumerate(candidates))

    def work(self, init: int) -> Work:
        """What is to be measured under the ``init``-th draw of the weights."""
        return Work(
            partial(draw, self.settings.space, self.space_args, self._draw_seed(init), self.precision, self.device),
            self.task,
            self.proxy,
            self.measured,
            self.training,
            self.device,
            self.precision,
            self.settings.recompute,
        )

    def super_network(self, init: int) -> BlockSpace:
        """The space with the ``init``-th draw of its weights, in training mode, on the device."""
        return self.work(init).network

    def score(self, network: BlockSpace, choices: Mapping[str, str]) -> Score:
        """Mean score of one architecture of ``network`` over the minibatches, the plain way."""
        return measure(self.work(0), network, choices)

    def _processes(self) -> int:
        is_own = is_live(self.settings.space, self.space_args) or type(self.proxy).__module__ == "__main__"
        if self.device.type != "cpu" or is_own:
            return 1  # a script's or a notebook's own space or proxy can be imported by no other process
        return self.settings.processes or torch.get_num_threads()

    def _draw_seed(self, init: int) -> int:
        return derived_seed(self.settings.seed, init)

    def _is_bf16_known(self) -> bool:
        """Whether bf16 was measured to rank as float64 does: benchmarks/results/precision.md."""
        measured = isinstance(self.proxy, FisherPotential) and isinstance(self.task, Classification)
        return measured and self.settings.train_minibatches == 1


def _drawn(task: Task, settings: ScoreSettings, count: int) -> list[Batch]:
    """The first ``count`` minibatches that the seed draws."""
    size, seed = settings.batch_size, settings.seed
    if isinstance(task, LoaderTask):  # each alone is read after all those before it
        return list[Batch](task.between(0, count, size, seed=seed))
    return [task.minibatch(size, seed=seed, index=index, augment=settings.augment) for index in range(count)]


def draw(space: str, space_args: Mapping[str, Any], seed: int, precision: str, device: torch.device) -> BlockSpace:
    """The super-network with the weights that ``seed`` draws, in training mode."""
    with seeded(seed):
        network = cast(BlockSpace, load_space(space)(**space_args))
        network.redraw()
    if precision == "float64":
        network.double()
    network.to(device).train()
    return network


def check_fit(space: str, space_args: Mapping[str, Any], task: Task, batch: Batch) -> None:
    """Raise ConfigError unless the space's networks do what the task asks for, and take a ``batch`` of it.

    Classifiers must take its images (N, C, H, W). A network has as many classes as the task: with more of them its
    labels mean something else. A task that does not know all its classes has to have no more than the network.
    """
    arguments = complete_args(space, space_args)
    table, kind = cost_table(space, arguments), cast(type[BlockSpace], load_space(space))
    size, answer = kind.interface(table.names(table.original()), **arguments)
    classifies, detects = isinstance(task, Classification), is_of_detector(answer)
    if classifies == detects:
        raise ConfigError(
            f"the networks of {space} {'detect' if detects else 'classify'}, and {task.name} is a data set for "
            f"{'classification' if classifies else 'detection'}; take another of them."
        )
    if not isinstance(task, Classification):
        told = {**arguments, **(arguments.get("model_args") or {})}  # of a network in hand nothing is told
        _check_classes(task, told.get("num_classes", task.num_classes))
        return
    images: Tensor = batch[0]
    if tuple(images.shape[1:]) != size:
        expected, given = ("x".join(map(str, one)) for one in (size, images.shape[1:]))
        remedy = (
            "give the network's example, or --input-size, the size of the images"
            if space == NETWORK
            else "set in_channels and image_size in the space's arguments"
        )
        raise ConfigError(f"the search space is for images of {expected} and {task.name} has {given}; {remedy}.")
    if type(task).loss is Classification.loss:  # type: ignore[comparison-overlap]  # not one of its own
        _check_cross_entropy(answer, batch[1])
        _check_classes(task, answer.shape[1])
    elif isinstance(answer, Tensor) and answer.dim() > 1 and answer.shape[1] > 1:  # one number is no class
        _check_classes(task, answer.shape[1])


def _check_cross_entropy(answer: Any, labels: Tensor) -> None:
    if not isinstance(answer, Tensor):
        raise ConfigError(
            f"the network answers with a {type(answer).__name__}, and cross-entropy takes a tensor; give a loss of "
            "your own, or wrap the network in a module that gives one tensor."
        )
    if answer.dim() < 2:
        raise ConfigError(
            f"the network answers with shape {tuple(answer.shape)}, and cross-entropy takes a number a class, (N, "
            "classes); give a loss of your own."
        )
    if labels.dim() == 1 and labels.is_floating_point():
        raise ConfigError(f"labels are {labels.dtype}, and cross-entropy takes classes; give a loss of your own.")


def _check_classes(task: Task, classes: int) -> None:
    known = getattr(task, "knows_all_classes", True)
    if classes < task.num_classes or (known and classes != task.num_classes):
        raise ConfigError(
            f"{task.name} has {task.num_classes} classes and the network {classes}; set num_classes in the arguments "
            "of the space or the model."
        )
