"""Scores many architectures on one super-network.

The super-network, the space itself, holds the weights of every candidate of every block. Scoring one architecture
selects its candidates and measures; no network is built for it. All architectures see the same weights and the same
minibatches (common random numbers), so that what differs between two scores is the architecture.

Any proxy on any space and task takes the plain way, ``Scorer.score``. Fisher potential on a chain of blocks, the common
case, takes the fast one: ``fast_fisher``, on a CPU with ``cpu_layers`` and ``workers``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from nni_blockswap.architecture import cost_table, load_space
from nni_blockswap.blocks.space import BlockSpace, seeded
from nni_blockswap.errors import ConfigError
from nni_blockswap.scoring.engines import compiled, cpu_layers
from nni_blockswap.scoring.engines.chain import FisherChain, is_chain
from nni_blockswap.scoring.engines.cuda_graphs import GraphedFisherChain, graphed
from nni_blockswap.scoring.proxies import Proxy, Score
from nni_blockswap.scoring.proxies.fisher import FisherPotential, fisher_information
from nni_blockswap.scoring.workers import Measure, score_all
from nni_blockswap.tasks import Batch, Task
from nni_blockswap.tasks.classification import Classification, Labelled

PRECISIONS = ("auto", "float32", "bf16", "float64")
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 5e-4  # the paper's recipe (section 5), for scores after training


class Scorer:
    """Scores architectures of one space on fixed minibatches.

    Args:
        space: "module:Class" of the space.
        space_args: its constructor's arguments.
        task: where minibatches and loss come from.
        proxy: what is measured.
        batch_size: images in a minibatch; the paper takes that of the training (section 4).
        seed: of weights and minibatches.
        minibatches: a score is the mean over that many.
        train_minibatches: measure after training on this many minibatches, the measured one included: 1 measures at
            initialisation, T after T - 1 steps of SGD (Table 1).
        augment: whether minibatches pass the training augmentation.
        device: "auto" (a GPU if there is one), "cpu", "cuda", ...
        precision: of the convolutions, one of ``PRECISIONS``; Fisher information is summed in float32 at least. "auto"
            is bf16 where it is native to a CPU and known to rank as float64 does (``_is_bf16_known``), else float32.
        processes: that score side by side on a CPU, the fast way; None is one for each of PyTorch's threads. Each holds
            a super-network and the activations of one candidate. Scores do not depend on it. A
            script's own space, in ``__main__``, is scored in one: no other process can import it.
        recompute: the fast way only: run each block a second time in the backward pass instead of keeping its
            activations: less memory, more time, the same scores.

    Raises:
        ConfigError: settings that do not exist, or a space whose networks are not for this task; see ``check_fit``.
        DataError: the training set is too small for the minibatches.
    """

    def __init__(
        self,
        space: str,
        space_args: Mapping[str, Any],
        task: Task,
        proxy: Proxy,
        *,
        batch_size: int,
        seed: int = 0,
        minibatches: int = 1,
        train_minibatches: int = 1,
        augment: bool = True,
        device: str = "auto",
        precision: str = "auto",
        processes: int | None = None,
        recompute: bool = False,
    ) -> None:
        self.space, self.space_args = space, dict(space_args)
        self.task, self.proxy, self.seed = task, proxy, seed
        self.device = resolve_device(device)
        self.precision = resolve_precision(precision, self.device, self._is_bf16_known(train_minibatches))
        self._processes, self._recompute = processes, recompute
        self._frozen: set[str] = set()
        drawn = [
            task.minibatch(batch_size, seed=seed, index=index, augment=augment)
            for index in range(train_minibatches - 1 + minibatches)
        ]
        check_fit(space, space_args, task, drawn[0])
        self.fingerprint = "+".join(task.fingerprint(batch) for batch in drawn)[:256]
        dtype = torch.float64 if self.precision == "float64" else None
        batches = [task.to(batch, self.device, dtype) for batch in drawn]
        self._training, self.measured = batches[: train_minibatches - 1], batches[train_minibatches - 1 :]

    def scores(self, init: int, candidates: Sequence[Mapping[str, str]]) -> Iterator[tuple[int, Score]]:
        """Score ``candidates`` (canonical choices by label) under the ``init``-th draw of the weights.

        Yields:
            (position in ``candidates``, score), as they come.
        """
        network = self.super_network(init)
        if not self._is_fast(network):
            for position, choices in enumerate(candidates):
                yield position, self.score(network, choices)
            return
        start = partial(
            start_fast,
            partial(draw, self.space, self.space_args, self._draw_seed(init), self.precision, self.device),
            self.measured,
            self.precision,
            self._recompute,
            can_compile(self.precision, self.device),
        )
        del network  # it has one of its own, in fast layers
        processes = (self._processes or torch.get_num_threads()) if self.device.type == "cpu" else 1
        if self.space.startswith("__main__:"):  # a script's or a notebook's: no other process can import it
            processes = 1
        yield from score_all(start, start(), candidates, processes - 1)

    def super_network(self, init: int) -> BlockSpace:
        """The space with the ``init``-th draw of its weights, in training mode, on the device."""
        network = draw(self.space, self.space_args, self._draw_seed(init), self.precision, self.device)
        self._frozen = {name for name, weight in network.named_parameters() if not weight.requires_grad}
        return network

    def _draw_seed(self, init: int) -> int:
        return self.seed * 1_000_003 + init

    def _is_bf16_known(self, train_minibatches: int) -> bool:
        """Whether bf16 was measured to rank as float64 does: benchmarks/results/precision.md."""
        measured = isinstance(self.proxy, FisherPotential) and isinstance(self.task, Classification)
        return measured and train_minibatches == 1

    def _is_fast(self, network: BlockSpace) -> bool:
        return (
            isinstance(self.proxy, FisherPotential)
            and isinstance(self.task, Classification)
            and type(self.task).loss is Classification.loss  # type: ignore[comparison-overlap]  # not a loss of its own
            and not self._training
            and is_chain(network, self.measured[0][0][:2])
        )

    def score(self, network: BlockSpace, choices: Mapping[str, str]) -> Score:
        """Mean score of one architecture over the minibatches; the network's weights are left as they were."""
        network.select(choices)
        saved: list[Tensor] = []
        if self._training:
            self._thaw(network)
            saved = [weight.detach().clone() for weight in network.active_parameters()]
            self._train(network)
        if self.proxy.needs_weight_gradients:
            self._thaw(network)
        else:
            network.requires_grad_(False)
        scores = []
        for batch in self.measured:
            with autocast(self.device, self.precision):
                scores.append(self.proxy.measure(network, self.task, batch))
        with torch.no_grad():
            for weight, before in zip(network.active_parameters() if saved else [], saved, strict=True):
                weight.copy_(before)
        return mean_score(scores)

    def _thaw(self, network: BlockSpace) -> None:
        """Let weights have gradients, but for those that the space itself froze."""
        for name, weight in network.named_parameters():
            weight.requires_grad_(name not in self._frozen)

    def _train(self, network: BlockSpace) -> None:
        optimiser = torch.optim.SGD(
            network.active_parameters(), LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
        )
        for batch in self._training:
            with autocast(self.device, self.precision):
                loss = self.task.loss(network, batch)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()


def draw(space: str, space_args: Mapping[str, Any], seed: int, precision: str, device: torch.device) -> BlockSpace:
    """The super-network with the weights that ``seed`` draws, in training mode."""
    with seeded(seed):
        network = cast(BlockSpace, load_space(space)(**space_args))
    if precision == "float64":
        network.double()
    network.to(device).train()
    return network


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Convolutions in bfloat16 if ``precision`` says so, else in just that precision."""
    if precision == "bf16":
        # No cache: it would hand a CUDA graph casts of weights that are gone when it is replayed.
        return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)
    return _without_tf32() if device.type == "cuda" else nullcontext()


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Convolutions that multiply in float32: by default PyTorch lets cuDNN round to TF32's 10 bits of mantissa."""
    cudnn: Any = torch.backends.cudnn
    modern = hasattr(cudnn, "conv")  # since PyTorch 2.9
    owner, name = (cudnn.conv, "fp32_precision") if modern else (cudnn, "allow_tf32")
    before = getattr(owner, name)
    setattr(owner, name, "ieee" if modern else False)
    try:
        yield
    finally:
        setattr(owner, name, before)


def start_fast(
    draw_network: Callable[[], BlockSpace],
    batches: Sequence[Labelled],
    precision: str,
    recompute: bool,
    is_compiled: bool,
) -> Measure:
    """A function from choices to Fisher potential, the mean over ``batches``; see ``fast_fisher``.

    All processes of a search are told whether they take the ``compiled`` forms, so that they round alike.
    """
    network = draw_network()
    device = batches[0][0].device
    if device.type == "cpu" and precision != "float64":
        cpu_layers.prepare(network, precision == "bf16", is_compiled)
        cpu_layers.keep_freed_memory()
    elif device.type == "cuda":
        network.to(memory_format=torch.channels_last)
    chain: FisherChain | GraphedFisherChain
    with autocast(device, precision):
        information = compiled.fisher_information if is_compiled else fisher_information
        chain = FisherChain(network, batches, recompute, information)
        if device.type == "cuda" and not recompute:
            chain = graphed(chain, network, batches)

    def measure(choices: Mapping[str, str]) -> Score:
        with autocast(device, precision):
            return mean_score([chain.measure(choices, index) for index in range(len(batches))])

    return measure


def can_compile(precision: str, device: torch.device) -> bool:
    """Whether there is a compiled form of BN and Fisher information for this."""
    dtype = {"float32": torch.float32, "bf16": torch.bfloat16}.get(precision)
    return device.type == "cpu" and dtype is not None and compiled.library(dtype) is not None


def mean_score(scores: Sequence[Score]) -> Score:
    """The mean of scores, block by block."""
    blocks = tuple(sum(terms) / len(scores) for terms in zip(*(score.blocks for score in scores), strict=True))
    return Score(sum(score.value for score in scores) / len(scores), blocks)


def check_fit(space: str, space_args: Mapping[str, Any], task: Task, batch: Batch) -> None:
    """Raise ConfigError unless the space's networks do what the task asks for, and take a ``batch`` of it.

    Classifiers must take its images (N, C, H, W) and tell the task's classes apart.
    """
    classifies = isinstance(task, Classification)
    detects = getattr(load_space(space), "detects", False)
    if classifies == detects:
        raise ConfigError(
            f"the networks of {space} {'detect' if detects else 'classify'}, and {task.name} is a data set for "
            f"{'classification' if classifies else 'detection'}; change one of them, or the space's 'detects'."
        )
    if not classifies:
        return
    images: Tensor = batch[0]
    table = cost_table(space, space_args)
    with torch.device("meta"), torch.no_grad():
        network: Any = load_space(space).build(table.names(table.teacher()), **space_args).eval()
        classes = network(torch.empty(1, *network.input_size)).shape[1]
    if tuple(images.shape[1:]) != tuple(network.input_size):
        expected, given = ("x".join(map(str, size)) for size in (network.input_size, images.shape[1:]))
        raise ConfigError(
            f"the search space is for images of {expected} and {task.name} has {given}; "
            "set in_channels and image_size in the space's arguments."
        )
    if classes < task.num_classes:
        raise ConfigError(f"{task.name} has {task.num_classes} classes and the network {classes}; set num_classes.")


def resolve_device(name: str) -> torch.device:
    """The device called ``name``; "auto" is a GPU if there is one. Raises ConfigError where it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        message = str(error).splitlines()[0]
        raise ConfigError(f"the device '{name}' cannot be used ({message}); choose auto, cpu or cuda.") from error
    return device


def resolve_precision(name: str, device: torch.device, bf16_known: bool = False) -> str:
    """The precision called ``name``; "auto" is bf16 where it is native to a CPU and ``bf16_known`` to do, else float32.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in PRECISIONS:
        raise ConfigError(f"there is no precision '{name}'; choose from {', '.join(PRECISIONS)}.")
    if name != "auto":
        return name
    return "bf16" if bf16_known and device.type == "cpu" and torch.cpu._is_avx512_bf16_supported() else "float32"
