"""Where a teacher's weights come from, as ``--teacher`` says it."""

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
