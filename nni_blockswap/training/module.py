"""What all trainings share: optimiser and rate, draws by the epoch, a watch over the loss, figures in checkpoints."""

import math
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

from nni_blockswap.draws import drawing
from nni_blockswap.errors import TrainingError
from nni_blockswap.networks import check_tensors_alone, not_finite
from nni_blockswap.seeds import derived_seed
from nni_blockswap.training.averaging import averaged
from nni_blockswap.training.recipe import Optimisation

CHECK_EVERY = 50
"""Steps between two looks at the loss; each look waits for the device."""


class Training(LightningModule):
    """Training of a network on a task by a recipe.

    A subclass computes the loss of a batch and tells it, with what it is made of, to ``watch``; and it sets ``figures``
    after each validation.

    Args:
        network: what is trained.
        task: where the batches come from.
        recipe: optimiser and schedule.

    Raises:
        ConfigError: the network keeps what a checkpoint does not.
    """

    recipe: Optimisation

    def __init__(self, network: nn.Module, task: Any, recipe: Optimisation) -> None:
        super().__init__()
        check_tensors_alone(network, "the network", "checkpoints hold tensors alone")
        self.network = network
        self.task = task
        self.recipe = recipe
        self.run: str | None = None
        self.has_begun = False
        self.average = None if recipe.ema is None else averaged(network, recipe.ema)
        self._steps_averaged = 0
        self.figures: dict[str, float] = {}
        """On the validation set after the last epoch."""
        self._watched: list[str] = []
        self._sums = torch.zeros(())
        self._draws: torch.Generator | None = None

    @property
    def evaluated(self) -> nn.Module:
        """What is judged and published: the network, or the average of its weights."""
        return self.network if self.average is None else self.average.module

    @property
    def monitor(self) -> str:
        """The logged metric that says which epoch is best."""
        return f"val/{self.task.metric.key}"

    @property
    def remedy(self) -> str:
        """What a person may do when the loss is no longer finite, with the values that were used."""
        raise NotImplementedError

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The recipe's, over what is trained; its rate is set at each step."""
        return self.recipe.optimiser(self.network.parameters())

    def on_train_start(self) -> None:
        """From here on nothing fails any more for what a checkpoint holds."""
        self.has_begun = True

    def on_train_epoch_start(self) -> None:
        """Set order and all draws from the epoch alone, so that a resumed run repeats none."""
        self._draws = seed_epoch(self.trainer, self.recipe.seed, self.device)
        self._sums = torch.zeros((), device=self.device)
        self._steps_averaged = self.global_step

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Normalise, and in training augment, the whole batch on its device."""
        training = bool(self.trainer.training)
        return self.task.prepare(batch, train=training, generator=self._draws if training else None)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the learning rate of the step."""
        batches = self.trainer.num_training_batches  # infinite where nobody knows
        steps = math.ceil(batches / self.recipe.accumulate) if math.isfinite(batches) else 1
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self.recipe.learning_rate(self.current_epoch, self.global_step, steps)

    def on_validation_epoch_start(self) -> None:
        """Stop a diverged training before its network is judged."""
        if self.is_training_run:
            self.stop_unless_finite_weights()

    @property
    def is_training_run(self) -> bool:
        """Whether this is a training, also while it validates, when ``trainer.training`` is False."""
        return self.trainer.state.fn == TrainerFn.FITTING

    def watch(self, parts: dict[str, Tensor]) -> None:
        """Add what a step's loss is made of to the epoch's means, on the device: Lightning's log would cost more."""
        self._watched = list(parts)
        self._sums = self._sums + torch.stack([part.detach() for part in parts.values()])

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop a diverged run before it replaces a good checkpoint; log the epoch's means and its last rate."""
        if self.average is not None and self.global_step != self._steps_averaged:  # not after each part of a batch
            self.average.update_parameters(self.network)
            self._steps_averaged = self.global_step
        last = self.trainer.is_last_batch
        if last or (batch_idx + 1) % CHECK_EVERY == 0:
            total: Any = self.trainer.strategy.reduce(self._sums.clone(), reduce_op="sum")  # one process tells all
            self.stop_unless_finite(total.sum())
        if last:
            means = (self._sums / (batch_idx + 1)).unbind()
            named: dict[str, Any] = {f"train/{name}": mean for name, mean in zip(self._watched, means, strict=True)}
            named["learning_rate"] = self.trainer.optimizers[0].param_groups[0]["lr"]
            self.log_dict(named, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)

    def stop_unless_finite(self, loss: Any) -> None:
        """Raise TrainingError unless the loss is a finite number."""
        if not bool(torch.isfinite(torch.as_tensor(loss))):
            raise self._diverged("loss is")

    def stop_unless_finite_weights(self) -> None:
        """Raise TrainingError unless all weights and statistics are finite numbers."""
        if not_finite(self) is not None:
            raise self._diverged("weights are")

    def _diverged(self, what: str) -> TrainingError:
        return TrainingError(
            f"the {what} no longer finite in epoch {self.current_epoch + 1}{self.remedy}; "
            "the checkpoints of earlier epochs are kept."
        )

    def weights_in(self, checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
        """The weights in a checkpoint of this training that are judged and published."""
        prefix = "network." if self.average is None else "average.module."
        state = checkpoint["state_dict"]
        return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the figures with the weights that they belong to, and whose they are."""
        self.stop_unless_finite_weights()
        checkpoint["figures"] = self.figures
        checkpoint["run"] = self.run
        checkpoint["planned_epochs"] = self.recipe.epochs
        checkpoint["stopped"] = bool(self.trainer.should_stop)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them back, for a run that was complete already."""
        self.figures = checkpoint["figures"]


def seed_epoch(trainer: Trainer, seed: int, device: torch.device) -> torch.Generator:
    """At the start of an epoch, set the order of its examples and all its draws from ``seed`` and the epoch alone.

    Returns:
        A generator for what this process draws on ``device``.
    """
    of_epoch = derived_seed(seed, trainer.current_epoch)
    own = of_epoch * trainer.world_size + trainer.global_rank
    loader: Any = getattr(trainer.train_dataloader, "batches", trainer.train_dataloader)
    for part in drawing(loader):  # one order for all processes; those that read take their seeds from the loader's own
        part.generator = torch.Generator().manual_seed(own if part is loader else of_epoch)
    if isinstance(loader, DataLoader):  # a user's own batches may come from elsewhere
        if isinstance(loader.sampler, DistributedSampler):  # Lightning adds the epoch
            loader.sampler.seed = derived_seed(seed, 0)
        if loader.persistent_workers:
            loader._iterator = None  # its processes would draw on from where the last epoch left them
    random.seed(own)
    np.random.seed(own % 2**32)  # noqa: NPY002  # a user's own data may draw from it
    torch.manual_seed(own)
    return torch.Generator(device).manual_seed(own)
