"""What a score depends on, and how it is computed: one object from the edge to the engines."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nni_blockswap.ranges import check_count
from nni_blockswap.seeds import check_seed

LARGEST = {"batch_size": 2**20, "inits": 1000, "minibatches": 1000, "train_minibatches": 100_000, "processes": 1024}
"""Beyond which nobody means it, and nobody would live to see the end."""


@dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """What a score depends on, and how it is computed.

    Attributes:
        space: the search space's class as "module:Class".
        data: name of the data set.
        data_root: folder of the data set.
        space_args: arguments of the space's constructor.
        data_options: options of the data set.
        batch_size: images in a minibatch; the paper takes that of the training (section 4).
        seed: of weights and minibatches, in a search of the samples too.
        proxy: what is measured; of several, joined by "+", the sum of the ranks.
        inits: a score is the mean over that many draws of the weights.
        minibatches: and over that many minibatches.
        train_minibatches: measure after training on this many minibatches, the measured one included: 1 measures at
            initialisation, T after T - 1 steps of SGD (Table 1).
        augment: whether minibatches pass the training augmentation.
        device: "auto" (a GPU if there is one), "cpu", "cuda", ...
        precision: of the convolutions, one of ``PRECISIONS``; Fisher information is summed in float32 at least. "auto"
            is bf16 where it is native to a CPU and known to rank as float64 does (``Scorer._is_bf16_known``), else
            float32.
        processes: that score side by side on a CPU, the fast way; None is one for each of PyTorch's threads. Each holds
            a super-network and the activations of one candidate. Scores do not depend on it. A
            script's own space, in ``__main__``, is scored in one: no other process can import it.
        recompute: the fast way only: run each block a second time in the backward pass instead of keeping its
            activations: less memory, more time, the same scores.
    """

    space: str
    data: str
    data_root: str | None = None
    space_args: Mapping[str, Any] = field(default_factory=dict)
    data_options: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 128
    seed: int = 0
    proxy: str = "fisher"
    inits: int = 1
    minibatches: int = 1
    train_minibatches: int = 1
    augment: bool = True
    device: str = "auto"
    precision: str = "auto"
    processes: int | None = None
    recompute: bool = False

    def __post_init__(self) -> None:
        for name, most in LARGEST.items():
            if name != "processes" or self.processes is not None:
                check_count(name, getattr(self, name), most)
        check_seed(self.seed, "seed")
