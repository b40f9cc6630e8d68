"""Where a teacher's weights come from, as ``--teacher`` says it."""

from typing import Any

from nni_blockswap.errors import CheckpointError, first_line

TORCHVISION, TIMM = "torchvision:", "timm:"
"""Before the name of a model, or of torchvision's weights."""

ORIGINAL = "original"
"""The network as it is made, with the weights that it comes with."""


def is_file(source: str) -> bool:
    """Whether ``source`` is a checkpoint's path.

    Example:
        >>> is_file("teacher/weights.pt"), is_file("timm:resnet18"), is_file("original")
        (True, False, False)
    """
    return source != ORIGINAL and not source.startswith((TORCHVISION, TIMM))


def read_source(source: str) -> Any:
    """What a checkpoint holds, or the weights that a name stands for; of ``ORIGINAL`` there are none to read.

    Raises:
        CheckpointError: they cannot be found or read.
    """
    from nni_blockswap.training import checkpoints  # and torch, which a look at a command line does not need

    if source.startswith(TORCHVISION):
        return _of_torchvision(source.removeprefix(TORCHVISION))
    return _of_timm(source.removeprefix(TIMM)) if source.startswith(TIMM) else checkpoints.read(source)


def check_source(source: str | None) -> None:
    """Raise CheckpointError where torchvision has no weights that a teacher's ``source`` names."""
    if source is not None and source.startswith(TORCHVISION):
        _named_in_torchvision(source.removeprefix(TORCHVISION))


def _named_in_torchvision(name: str) -> Any:
    from torchvision import models

    try:
        return models.get_weight(name) if "_Weights." in name else models.get_model_weights(name).DEFAULT
    except (ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"torchvision has no weights called '{name}': {first_line(error)}.") from error


def _of_torchvision(name: str) -> Any:
    weights = _named_in_torchvision(name)
    try:
        return weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"the weights '{name}' cannot be downloaded ({error}); fetch {weights.url} and give --teacher PATH."
        ) from error


def _of_timm(name: str) -> Any:
    try:
        import timm
    except ImportError as error:
        raise CheckpointError(f"--teacher {TIMM}{name} needs the package timm ({error}): pip install timm.") from error
    if not timm.is_model_pretrained(name):
        raise CheckpointError(f"timm has no weights for a model called '{name}'; timm.list_pretrained() lists them.")
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # of the many that a download raises
        raise CheckpointError(
            f"timm's weights '{name}' cannot be downloaded ({first_line(error)}); fetch them and give --teacher PATH."
        ) from error
