"""The bench of one block: its candidates while they learn."""

import math
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nni_blockswap.blocks.inheritance import settle_all
from nni_blockswap.blocks.shells import Block
from nni_blockswap.blocks.weights import initialise, seeded
from nni_blockswap.cost.table import ORIGINAL
from nni_blockswap.errors import CheckpointError, StateError
from nni_blockswap.files import remove_abandoned
from nni_blockswap.library import store
from nni_blockswap.library.fitting import LastConvolution
from nni_blockswap.library.measuring import Error, spread
from nni_blockswap.library.settings import LibrarySettings
from nni_blockswap.networks import channels_last, check_tensors_alone
from nni_blockswap.seeds import derived_seed

KNOWN = 1e-9
"""A candidate whose error is not above this has nothing to learn."""


class Bench:
    """The candidates of one block while they learn, each for itself, what its original does.

        minimise mean (f(x) - y)^2 / V    V the variance of y about its channels' means, by AdamW, in training mode

    So BN takes the statistics of the teacher's own activations. The rate falls from ``lr`` to 0 over the steps from
    ``begin`` on. What is learned depends on block, candidate, seed and step, not on who learns beside.

    Candidates begin from what their families take over from the original, or from fresh weights. The last convolution
    is fitted to what the original gives.

    A candidate without parameters learns nothing, and none learns more where its error is nothing, or where a series of
    as many steps as this one has changed it by less than its standard error.

    Args:
        block: of the teacher, running the original.
        settings: how it learns.
        folder: of the library.
        device: where.

    Attributes:
        step: how many each candidate has made.
        begin: the step at which this series of them began.
        starts: errors of the candidates at ``begin``, once they were measured.
    """

    def __init__(self, block: Block, settings: LibrarySettings, folder: Path, device: torch.device) -> None:
        self.block, self._settings, self._folder, self._device = block, settings, folder, device
        self.step = self.begin = 0
        self.starts: dict[str, Error] = {}
        self.candidates: dict[str, nn.Module] = {}
        self._begun: dict[str, dict[str, Tensor]] = {}
        self._fits: list[LastConvolution] = []
        self._settled: dict[str, int] = {}
        self._optimisers: dict[str, torch.optim.AdamW] = {}

    @property
    def final(self) -> Path:
        """Where its weights go."""
        return self._folder / f"{self.block.label}.safetensors"

    @property
    def state(self) -> Path:
        """Where it is kept while it learns."""
        return self._folder / f"{self.block.label}.state.safetensors"

    @property
    def steps_done(self) -> int:
        """How many the candidates had made when the block was finished; 0 where it is not."""
        return int(learned(self.final, self.block.label)["steps"]) if self.final.exists() else 0

    def open(self) -> None:
        """Build the candidates: as an interrupted run left them, as a finished one did, or as they begin."""
        self.begin = self.step = self.steps_done
        self.starts = {}
        kept, said = store.read(self.final) if self.begin else ({}, {"settled_after": {}})
        self._settled = said["settled_after"]
        self.candidates = {name: self._built(name, kept) for name in self.block.names if name != ORIGINAL}
        self._optimisers = {
            name: torch.optim.AdamW(weights, self._settings.lr, weight_decay=self._settings.weight_decay)
            for name, candidate in self.candidates.items()
            if (weights := list(candidate.parameters()))
        }
        if self.state.exists():
            tensors, about = store.read(self.state)
            if all(about[name] == value for name, value in self._series.items()):  # else of another series of steps
                self._restore(tensors, about)

    def close(self) -> None:
        """Let go of the candidates, and of what was gathered to fit them."""
        self.candidates, self._optimisers, self._begun, self._fits = {}, {}, {}, []

    def _built(self, name: str, kept: Mapping[str, Tensor]) -> nn.Module:
        """A candidate, fresh, or with the weights of the finished file."""
        with seeded(self._seed(name)):
            candidate = self.block.site.build(name)
            initialise(candidate)
        check_tensors_alone(candidate, name, "a library keeps tensors alone")
        if self.begin:
            go_on(candidate, of_candidate(kept, name), f"{name} of {self.block.label}", self._folder)
        return channels_last(candidate.to(self._device))

    def _seed(self, what: str) -> int:
        return derived_seed(self._settings.seed, zlib.crc32(f"{self.block.label} {what}".encode()))

    def inherit(self, entered: Tensor, left: Tensor) -> None:
        """Take over what families know to, from the original; or, with fresh weights, the scale of what enters it."""
        site, original = self.block.site, self.block.active_branch()
        for name, candidate in self.candidates.items():
            if not site.inherit(name, candidate.eval(), original, entered):
                settle_all(candidate, entered)
        self._fits = [LastConvolution(candidate) for candidate in self.candidates.values()]

    def gather(self, entered: Tensor, left: Tensor) -> None:
        """See more of what last convolutions are fitted to."""
        for fit in self._fits:
            fit(entered, left)

    def fit(self) -> None:
        """Fit them to what was seen."""
        for fit in self._fits:
            fit.solve()
        self._fits = []

    def mark(self, errors: Mapping[str, Error]) -> None:
        """Remember the candidates' weights and their ``errors`` at ``begin``."""
        self.starts = dict(errors)
        self._begun = {
            name: {key: value.clone() for key, value in candidate.state_dict().items()}
            for name, candidate in self.candidates.items()
        }

    def learn(self, entered: Tensor, left: Tensor, arithmetic: Callable[[], Any]) -> dict[str, Tensor]:
        """One step of each candidate that has something to learn; their losses."""
        target, losses = left.float(), {}
        scale = spread(target).clamp_min(1e-12)
        rate = self._rate()
        for name, optimiser in self._optimisers.items():
            if self._has_settled(name) or self.starts[name].value <= KNOWN:
                continue
            candidate = self.candidates[name]
            optimiser.param_groups[0]["lr"] = rate
            candidate.train()
            with torch.enable_grad(), seeded(self._seed(f"{name} {self.step}")):  # of dropout
                with arithmetic():
                    answer = candidate(entered)
                loss = (answer.float() - target).square().mean() / scale
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses[name] = loss.detach()
        self.step += 1
        return losses

    @property
    def _series(self) -> dict[str, int]:
        """What the rate of a step depends on."""
        return {"begin": self.begin, "end": self._settings.steps}

    def _has_settled(self, name: str) -> bool:
        """Whether a series of steps as long as this one has brought the candidate nothing."""
        return self._settled.get(name, 0) >= self._settings.steps - self.begin

    def _rate(self) -> float:
        passed = (self.step - self.begin) / (self._settings.steps - self.begin)
        return 0.5 * self._settings.lr * (1 + math.cos(math.pi * passed))

    def save(self) -> None:
        """Keep all that is needed to go on."""
        tensors = self.weights()
        for name, begun in self._begun.items():
            tensors |= {f"{name} begun.{key}": value for key, value in begun.items()}
        for name, optimiser in self._optimisers.items():
            for number, values in optimiser.state_dict()["state"].items():
                tensors |= {f"{name} optimiser.{number}.{key}": value for key, value in values.items()}
        starts = {name: [error.value, error.deviation] for name, error in self.starts.items()}
        store.write(self.state, tensors, {**self._series, "step": self.step, "starts": starts})

    def _restore(self, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        self.step = about["step"]
        self.starts = {name: Error(*numbers) for name, numbers in about["starts"].items()}
        for name, candidate in self.candidates.items():
            mine, momenta = dict[str, Tensor](), dict[int, dict[str, Tensor]]()
            for key, value in of_candidate(tensors, name).items():
                if key.startswith("optimiser."):
                    _, number, kind = key.split(".")
                    momenta.setdefault(int(number), {})[kind] = value
                elif key.startswith("begun."):
                    self._begun.setdefault(name, {})[key.removeprefix("begun.")] = value
                else:
                    mine[key] = value
            go_on(candidate, mine, f"{name} of {self.block.label}", self._folder)
            if optimiser := self._optimisers.get(name):
                groups = optimiser.state_dict()["param_groups"]
                optimiser.load_state_dict({"state": momenta, "param_groups": groups})

    def finish(self, errors: Mapping[str, Error]) -> None:
        """Keep what was learned; of a candidate that got worse or diverged, what it began with."""
        kept, settled, series = {}, {}, self.step - self.begin
        for name, error in errors.items():
            start = self.starts[name]
            if abs(start.value - error.value) <= error.deviation:  # never so of NaN
                settled[name] = max(series, self._settled.get(name, 0))
            if not error.value <= start.value:
                self.candidates[name].load_state_dict(self._begun[name])
                error = start
            kept[name] = [error.value, error.deviation]
        said = {"block": self.block.label, "steps": self.step, "errors": kept, "settled_after": settled}
        store.write(self.final, self.weights(), said)
        self.state.unlink(missing_ok=True)

    def tidy(self) -> None:
        """Remove what a killed run left: files half-written, and the state of one that had finished."""
        for path in (self.final, self.state):
            remove_abandoned(path)
        if self.state.exists() and store.about(self.state)["begin"] < self.steps_done:
            self.state.unlink()

    def weights(self) -> dict[str, Tensor]:
        """Of all candidates."""
        states = {name: candidate.state_dict() for name, candidate in self.candidates.items()}
        return {f"{name} {key}": value for name, state in states.items() for key, value in state.items()}


def learned(path: Path, label: str) -> dict[str, Any]:
    """What a finished file says of its block. Raises CheckpointError where that is damaged, or is of another block."""
    said = store.about(path)
    if said.get("block", label) != label or "errors" not in said:  # those of before do not name their block
        raise CheckpointError(f"'{path}' is not what {label} has learned; delete it, and build the library again.")
    return said


def go_on(candidate: nn.Module, weights: Mapping[str, Tensor], what: str, folder: Path) -> None:
    """Give ``candidate`` what it learned. Raises StateError where it was another module then."""
    try:
        candidate.load_state_dict(weights)
    except RuntimeError as error:
        raise StateError(
            f"{what} was taught as another module than is built now, so its weights in the library in '{folder}' do "
            "not fit; build the library anew, in another folder."
        ) from error


def of_candidate(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Those of one candidate, by their own names."""
    return {key.removeprefix(f"{name} "): value for key, value in tensors.items() if key.startswith(f"{name} ")}
