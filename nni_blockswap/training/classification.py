"""Training of an image classifier, which as a student imitates a frozen teacher in ways that add up."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pytorch_lightning import Callback
from torch import Tensor, nn

from nni_blockswap.blocks.capture import captured
from nni_blockswap.blocks.norms import is_norm
from nni_blockswap.blocks.points import undisturbed
from nni_blockswap.draws import undrawn
from nni_blockswap.errors import ConfigError
from nni_blockswap.networks import channels_last, laid_out
from nni_blockswap.training.attention import attention_distances
from nni_blockswap.training.condensation import Condensation, learned
from nni_blockswap.training.imitation import feature_distances, logit_distance
from nni_blockswap.training.module import Training
from nni_blockswap.training.program import say
from nni_blockswap.training.recipe import Recipe


class Teacher:
    """A network that only answers: evaluation mode, no gradients, weights and BN statistics never touched.

    Not an ``nn.Module`` on purpose: it is no part of a student's checkpoint, of DDP's buckets or of ``train()``.

    Args:
        network: the trained network.
        points: where its attention is transferred, by module path.
        figure: on the validation set, by the task's metric.
        matched: those of ``points`` where its activations have the shape of the student's, for feature matching.
    """

    def __init__(self, network: nn.Module, points: Sequence[str], figure: float, matched: Sequence[str] = ()) -> None:
        self.network = channels_last(network.eval().requires_grad_(False))
        self.points = tuple(points)
        self.figure = figure
        self.matched = tuple(matched)

    @torch.no_grad()
    def answer(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Its logits, and its activations (N, C, H, W) at its points."""
        with captured(self.network, self.points) as activations:
            logits: Tensor = self.network(images)
        return logits, activations


class ImageTraining(Training):
    """Training of an image classifier; with a ``teacher`` it imitates what the recipe says.

    Args:
        network: what is trained; (N, C, H, W) -> logits (N, classes).
        task: a ``Classification``: its batches are (images, labels).
        recipe: optimiser, schedule, weights of what is imitated.
        teacher: whom ``network`` imitates, at modules of the same paths, if the recipe says so.
    """

    recipe: Recipe

    def __init__(self, network: nn.Module, task: Any, recipe: Recipe, teacher: Teacher | None = None) -> None:
        super().__init__(channels_last(network), task, recipe)
        self.teacher = teacher if recipe.imitates else None
        self._is_undefined = False
        self._layout: torch.memory_format | None = None

    @property
    def remedy(self) -> str:
        """What a person may do when the loss is no longer finite."""
        return f"; lower --lr ({self.recipe.lr:g}) or --beta ({self.recipe.beta:g}), or set --clip"

    def configure_callbacks(self) -> list[Callback]:
        """What the network itself asks for: learned groups condense while they are trained."""
        return [Condensation()] if learned(self.network) else []

    def on_fit_start(self) -> None:
        """Put the teacher where the student is, and the student into training mode, all but norms frozen on purpose."""
        frozen = {path: module for path, module in self.network.named_modules() if _is_frozen_norm(module)}
        self.network.train()  # Lightning would leave a network that was evaluated as it is
        for module in frozen.values():
            module.eval()
        if frozen:
            more = f" and {len(frozen) - 3} more" if len(frozen) > 3 else ""
            say(f"in evaluation mode stay, as their weights are frozen: {', '.join([*frozen][:3])}{more}.")
        if self.teacher is not None:
            self.teacher.network.to(self.device)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Images normalised and augmented, with channels last where the networks take them so."""
        images, labels = super().on_after_batch_transfer(batch, dataloader_idx)
        if images.dim() != 4:
            return images, labels
        self._layout = self._layout or self._layout_for(images[:2])  # a norm may need two
        return images.contiguous(memory_format=self._layout), labels

    def _layout_for(self, example: Tensor) -> torch.memory_format:
        """Channels last, unless a network's code does not run so, as ``x.view(len(x), -1)`` does not."""
        networks = [self.network] if self.teacher is None else [self.network, self.teacher.network]
        with undrawn([self.device] if self.device.type == "cuda" else []):
            if all(_takes_channels_last(one.to(self.device), example) for one in networks):
                return torch.channels_last
        with torch.inference_mode(False):  # of a validation, whose tensors no training could use
            for one in (*networks, self.evaluated):
                laid_out(one, torch.contiguous_format)
        return torch.contiguous_format

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Loss of one batch: the task's own, and the terms of what is imitated (equation (1) and beyond)."""
        images, labels = batch
        with captured(self.network, self.teacher.points if self.teacher else ()) as activations:
            logits = _only_tensor(self.network(images)).float()
        own: Tensor = self.task.criterion(logits, labels, self.recipe.label_smoothing)
        loss = own
        shown = {self.task.loss_name: own, **self.task.training_figures(logits, labels)}
        if self.teacher is not None:
            term, parts = self._imitation(self.teacher, images, logits, activations)
            loss = own + term
            shown |= parts
        self.watch({"loss": loss, **shown})
        return loss

    def _imitation(
        self, teacher: Teacher, images: Tensor, logits: Tensor, activations: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of the terms, and each of them by name, unweighted."""
        recipe = self.recipe
        terms: list[Tensor] = []
        shown: dict[str, Tensor] = {}
        answered, seen = teacher.answer(images)
        if recipe.beta:
            distances = attention_distances(list(activations.values()), list(seen.values()), recipe.attention)
            terms.append(recipe.beta * distances.sum())
            shown |= {f"attention/{point}": one for point, one in zip(teacher.points, distances.unbind(), strict=True)}
        if recipe.kd:
            shown["logits"] = logit_distance(logits, answered, recipe.temperature)
            terms.append(recipe.kd * shown["logits"])
        if recipe.features:
            pairs = [(activations[point], seen[point]) for point in teacher.matched]
            distances = feature_distances(*zip(*pairs, strict=True))
            terms.append(recipe.features * distances.sum())
            shown |= {f"features/{point}": one for point, one in zip(teacher.matched, distances.unbind(), strict=True)}
        return sum(terms[1:], terms[0]), shown

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Loss and figures of one batch."""
        images, labels = batch
        logits = self.evaluated(images).float()
        shown = {"loss": self.task.criterion(logits, labels), **self.task.figures(logits, labels)}
        self.log_dict({f"val/{name}": value for name, value in shown.items()}, batch_size=len(labels), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        """Remember the figures."""
        metrics = self.trainer.callback_metrics
        if self.is_training_run:
            self.stop_unless_finite(metrics["val/loss"])
        if not math.isfinite(value := float(metrics[self.monitor])):
            self._tell_undefined(value)
        self.figures = {
            name.removeprefix("val/"): float(value) for name, value in metrics.items() if name.startswith("val/")
        }

    def _tell_undefined(self, value: float) -> None:
        """Say once that a metric is no number yet, or raise ConfigError where a network is judged for good."""
        said = f"the {self.task.metric} on the validation set is {value}"
        if not self.is_training_run:
            raise ConfigError(f"{said}, and nothing can be judged by that; mend what computes it.")
        if not self._is_undefined:
            self._is_undefined = True
            say(f"{said} in epoch {self.current_epoch + 1}; the training goes on.")


def _is_frozen_norm(module: nn.Module) -> bool:
    """Whether it is a normalisation in evaluation mode with parameters of which none is trained."""
    weights = list(module.parameters())
    return is_norm(module) and not module.training and bool(weights) and not any(one.requires_grad for one in weights)


def _takes_channels_last(network: nn.Module, images: Tensor) -> bool:
    """Whether the network, its weights laid out so, runs on images that are, too."""
    try:
        with undisturbed(network):
            network(images.contiguous(memory_format=torch.channels_last))
    except RuntimeError:
        return False
    return True


def _only_tensor(answer: object) -> Tensor:
    """Raise ConfigError where a network answers with more, as some do in training alone."""
    if not isinstance(answer, Tensor):
        raise ConfigError(
            f"in training the network answers with a {type(answer).__name__}; wrap it in a module that gives one "
            "tensor."
        )
    return answer


def check_attention(network: Any) -> None:
    """Raise ConfigError or SpaceError unless ``network`` has the points that its space transfers attention at."""
    if not network.attention_points:
        raise ConfigError(
            "attention is transferred at the space's attention_points, and it names none; name some, or use --beta 0."
        )
    with captured(network, network.attention_points):
        pass
