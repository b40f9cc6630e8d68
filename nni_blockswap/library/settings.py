"""What a library is made of, and how it is taught."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nni_blockswap.errors import ConfigError
from nni_blockswap.ranges import POSITIVE, WEIGHT, check_count
from nni_blockswap.scoring.settings import LARGEST
from nni_blockswap.seeds import check_seed

PRECISIONS = ("float32", "bf16")


@dataclass(frozen=True, kw_only=True)
class LibrarySettings:
    """What a library is made of, and how it is taught.

    Attributes:
        space: the search space's class as "module:Class".
        teacher: where the weights of the space's network with ``S`` in every block come from: a checkpoint's path, or a
            name as in ``training.sources``; None takes the weights that the network comes with.
        data: name of the data set; its labels are not looked at.
        data_root: folder of the data set.
        space_args: arguments of the space's constructor.
        data_options: options of the data set.
        steps: of AdamW, for each candidate. A library can be given more of them later.
        batch_size: images a step.
        blocks: labels of those that are taught; None is all. Of a finished library a few can be given more steps.
        lr: the first learning rate, which falls to 0 as a cosine does.
        weight_decay: of AdamW.
        held_out: training images that errors are measured on and that nothing learns from; at most a fifth of all, but
            one minibatch at least.
        seed: of weights and minibatches.
        device: "auto" (a GPU if there is one), "cpu", "cuda", ...
        precision: of the convolutions, one of ``PRECISIONS``; errors are taken in float32.
        blocks_at_once: how many blocks' candidates each process holds in memory, to learn from the same passes of the
            teacher; None is all of its own. What they learn does not depend on it.
        processes: that teach different blocks side by side; None is one for each of PyTorch's threads, or of GPUs for
            each GPU. Each holds a teacher of its own. A script's own network or data is taught by one.

    Raises:
        ConfigError: what has to be a number is none, or out of its range.
    """

    space: str
    data: str
    teacher: str | None = None
    data_root: str | None = None
    space_args: Mapping[str, Any] = field(default_factory=dict)
    data_options: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 160
    blocks: Sequence[str] | None = None
    batch_size: int = 96
    lr: float = 1e-2
    weight_decay: float = 1e-2
    held_out: int = 1024
    seed: int = 0
    device: str = "auto"
    precision: str = "float32"
    blocks_at_once: int | None = None
    processes: int | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "held_out"):
            check_count(name, getattr(self, name))
        for name in ("blocks_at_once", "processes"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), LARGEST.get(name))
        if self.blocks is not None and not (isinstance(self.blocks, list | tuple) and self.blocks):
            raise ConfigError(f"blocks is a list of at least one block, not {self.blocks!r}.")
        POSITIVE.check("lr", self.lr)
        WEIGHT.check("weight_decay", self.weight_decay)
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision is {' or '.join(PRECISIONS)}, not '{self.precision}'.")
        check_seed(self.seed, "seed")
