"""``chain`` on a GPU: each link is recorded once under its substitutes; a candidate is a replay of recordings.

A candidate of WRN-40-2 is about a thousand kernels of some microseconds each: launched one by one, the GPU waits for
Python. But a link under its substitutes always does the same to tensors of the same shapes. Its forward and backward
passes are captured as a CUDA graph each, when a candidate first needs them, between buffers that never move:

    x_0 = stem's output -> link_0 -> x_1 -> ... -> link_n-1 -> x_n -> head -> g_n -> link_n-1 -> g_n-1 -> ... -> g_1

Captures of one link share their memory, as a candidate runs but one of them: the peak is that of one candidate.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from nni_blockswap.blocks.space import BlockSpace
from nni_blockswap.errors import first_line
from nni_blockswap.scoring.engines.base import Measure, Work
from nni_blockswap.scoring.engines.chain import CHAIN, FisherChain, backward, measuring
from nni_blockswap.scoring.engines.feeding import entering, head_gradients
from nni_blockswap.scoring.engines.links import links, shared
from nni_blockswap.scoring.machine import autocast
from nni_blockswap.scoring.proxies import Score
from nni_blockswap.scoring.proxies.fisher import OfFisherInformation, fisher_information
from nni_blockswap.tasks import Task
from nni_blockswap.tasks.classification import Classification, Labelled


class CudaGraphs:
    """A chain of a classifier whose last link alone feeds the head, on a GPU, from recordings."""

    name = "cuda-graphs"
    about = "block by block, from recordings"
    parallel = True

    def suits(self, work: Work) -> bool:
        if work.device.type != "cuda" or work.recompute or not CHAIN.suits(work):
            return False
        return isinstance(work.task, Classification) and work.fed == (len(work.chain) - 1,)

    def start(self, work: Work) -> Callable[[], Measure]:
        return partial(start, work.draw, cast(OfFisherInformation, work.proxy), work.measured, work.precision)


CUDA_GRAPHS = CudaGraphs()
TASK = cast(Task, Classification())


def start(
    draw: Callable[[], BlockSpace], proxy: OfFisherInformation, batches: Sequence[Labelled], precision: str
) -> Measure:
    """A function from choices to what ``proxy`` says, the mean over ``batches``."""
    network = draw()
    network.to(memory_format=torch.channels_last)
    device = batches[0][0].device
    with autocast(device, precision):
        chain = graphed(FisherChain(network, TASK, batches), network, batches)
    return measuring(chain, proxy, len(batches), device, precision)


Recorded = Callable[[Any], Any]
"""One recording; it takes what the one before it gave."""
Replay = Callable[[], object]
Record = Callable[[int, Sequence[Recorded]], Sequence[Replay]]
"""From a place, whose recordings may share memory, and steps that follow each other, to a replay of each step."""

TOLERANCE = 0.05
"""Relative difference between replayed and plainly run scores: rounding is far below, a wrong replay far above."""


class GraphedFisherChain:
    """Measures candidates as ``FisherChain`` does, from recordings.

    Args:
        network: the super-network, in training mode; its weights are frozen.
        batches: images (N, C, H, W) and labels of each minibatch.
        record: how steps are recorded.
    """

    def __init__(self, network: BlockSpace, batches: Sequence[Labelled], record: Record) -> None:
        self._network = network.requires_grad_(False)
        blocks = network.blocks()
        self.channels = [block.site.out_channels for block in blocks]
        self._record = record
        network.select({block.label: block.names[0] for block in blocks})
        images = [one.contiguous(memory_format=torch.channels_last) for one, _ in batches]
        self._labels = [labels for _, labels in batches]
        both = list(zip(images, self._labels, strict=True))
        self._links = links(network, TASK, both[0])
        self._stems = [entering(network, TASK, one, self._links[0]).clone() for one in both]
        self._x = [torch.empty_like(x) for x in self._passed()]
        self._gradients = [torch.empty_like(x) for x in self._x]
        self._batch = images[0][:1], self._labels[0].clone()
        unwritten = torch.full((len(blocks),), torch.nan, dtype=self._precision(), device=self._x[0].device)
        self._information = unwritten  # memory that is used again may hold the very scores that a replay owes
        self._pairs: dict[tuple[int, tuple[str, ...]], Sequence[Replay]] = {}
        (self._head,) = record(len(self._links), [self._run_head])
        self._names: list[tuple[str, ...]] = []
        self._at = -1

    def measure(self, choices: Mapping[str, str], index: int = 0) -> Score:
        """Fisher potential of the architecture ``choices`` on the ``index``-th minibatch."""
        if index != self._at:
            self._x[0].copy_(self._stems[index])
            self._batch[1].copy_(self._labels[index])
            self._names, self._at = [], index
        names = [tuple(choices[block.label] for block in link.blocks) for link in self._links]
        for position in range(shared(self._names, names), len(names)):
            self._pair(position, names[position])[0]()
        self._head()
        for position in reversed(range(len(names))):
            self._pair(position, names[position])[1]()
        self._names = names
        blocks = tuple(self._information.tolist())
        return Score(sum(blocks), blocks)

    def _passed(self) -> list[Tensor]:
        """What goes into the first link, and what each gives."""
        passed = [self._stems[0]]
        with torch.no_grad():
            for link in self._links:
                passed.append(link.run(passed[-1])[1].detach())
        return passed

    def _precision(self) -> torch.dtype:
        return torch.promote_types(self._x[0].dtype, torch.float32)

    def _pair(self, position: int, names: tuple[str, ...]) -> Sequence[Replay]:
        """Replays of a link's forward and backward pass under the substitutes ``names``."""
        if (position, names) not in self._pairs:
            link = self._links[position]
            first = sum(len(one.blocks) for one in self._links[:position])
            here = slice(first, first + len(link.blocks))

            def forward(_: None) -> tuple[Tensor, list[Tensor], Tensor]:
                for block, name in zip(link.blocks, names, strict=True):
                    block.select(name)
                x = self._x[position].detach().requires_grad_(position > 0)
                activations, out = link.run(x)
                self._x[position + 1].copy_(out.detach())
                return x, activations, out

            def back(passed: tuple[Tensor, list[Tensor], Tensor]) -> None:
                x, activations, out = passed
                at_probes, before = backward(
                    x if position else None, activations, out, self._gradients[position + 1], fisher_information
                )
                self._information[here].copy_(at_probes)
                if before is not None:
                    self._gradients[position].copy_(before)

            self._pairs[position, names] = self._record(position, [forward, back])
        return self._pairs[position, names]

    def _run_head(self, _: None) -> None:
        at_last = head_gradients(self._network, TASK, self._batch, self._links, self._x[1:])[-1]
        self._gradients[-1].copy_(cast(Tensor, at_last))


class CudaRecorder:
    """Records steps as CUDA graphs on ``device``."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pools: dict[int, Any] = {}

    def __call__(self, place: int, steps: Sequence[Recorded]) -> list[Replay]:
        pool = self._pools.setdefault(place, torch.cuda.graph_pool_handle())
        here = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(here)
        try:
            with torch.cuda.stream(self._stream):
                given = None
                for step in steps:  # once without recording: what libraries set up on first use cannot be captured
                    given = step(given)
                given, replays = None, list[Replay]()
                for step in steps:
                    graph = torch.cuda.CUDAGraph()
                    with _capturing(graph, pool):
                        given = step(given)
                    replays.append(graph.replay)
        finally:
            here.wait_stream(self._stream)  # nothing that it uses may be freed before it is done
        return replays


@contextmanager
def _capturing(graph: torch.cuda.CUDAGraph, pool: Any) -> Iterator[None]:
    """``torch.cuda.graph`` without its freeing of all unused memory each time."""
    graph.capture_begin(pool)
    try:
        yield
    except BaseException:
        with suppress(RuntimeError):  # the failed step's own error says more
            graph.capture_end()
        raise
    graph.capture_end()


class WhileRecordable:
    """``fast`` until something cannot be recorded, as memory ran out or a substitute waits for the GPU; then ``plain``.

    Args:
        fast: what records when a candidate first needs it.
        plain: makes what measures without recordings.
    """

    def __init__(self, fast: GraphedFisherChain, plain: Callable[[], FisherChain]) -> None:
        self.channels = fast.channels
        self._measuring: GraphedFisherChain | FisherChain = fast
        self._plain = plain

    def measure(self, choices: Mapping[str, str], index: int = 0) -> Score:
        """Fisher potential of the architecture ``choices`` on the ``index``-th minibatch."""
        try:
            return self._measuring.measure(choices, index)
        except RuntimeError as error:
            if isinstance(self._measuring, FisherChain):
                raise
            _tell(first_line(error))
        del self._measuring  # with the memory of all recordings
        self._measuring = self._plain()
        return self._measuring.measure(choices, index)


def graphed(chain: FisherChain, network: BlockSpace, batches: Sequence[Labelled]) -> FisherChain | WhileRecordable:
    """``chain`` from CUDA graphs, or itself, with a warning, where they do not work or do not give its score."""
    choices = {block.label: block.names[-1] for block in network.blocks()}
    try:
        fast = GraphedFisherChain(network, batches, CudaRecorder(batches[0][0].device))
        found, expected = fast.measure(choices).value, chain.measure(choices).value
    except RuntimeError as error:
        problem = first_line(error)
    else:
        if math.isclose(found, expected, rel_tol=TOLERANCE):
            return WhileRecordable(fast, partial(FisherChain, network, TASK, batches))
        problem = f"they score {found:g} where it is {expected:g}"
    _tell(problem)
    return chain


def _tell(problem: str) -> None:
    warnings.warn(f"CUDA graphs are not used: {problem}. Scores are the same and take longer.", stacklevel=3)
