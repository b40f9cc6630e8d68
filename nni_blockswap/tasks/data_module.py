"""What a LightningDataModule gives, as a task."""

import logging
from typing import Any

from nni_blockswap.errors import DataError, first_line
from nni_blockswap.tasks.loader import LoaderTask

_log = logging.getLogger(__name__)


class ModuleTask(LoaderTask):
    """What a LightningDataModule gives, in the batches that it makes; it may be anybody's Lightning.

    Args:
        name: its import path.
        module: not yet set up.

    Raises:
        DataError: it cannot be set up, or gives no batches.
    """

    def __init__(self, name: str, module: Any) -> None:
        self.name = name
        super().__init__(*loaders_of(module))


def is_data_module(what: Any) -> bool:
    """Whether it is a LightningDataModule, or a class of them."""
    return all(hasattr(what, hook) for hook in ("prepare_data", "setup", "train_dataloader", "val_dataloader"))


def loaders_of(module: Any) -> tuple[Any, Any]:
    """Batches to learn from and to be judged on, of a LightningDataModule.

    Raises:
        DataError: it fails.
    """
    hooks = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
    owners = {hook: getattr(getattr(type(module), hook, None), "__module__", "lightning") for hook in hooks}
    own = [hook for hook, owner in owners.items() if owner.partition(".")[0] not in ("lightning", "pytorch_lightning")]
    if own:
        _log.warning(
            "the data module %s has its own %s, which is not called; what changes images and labels belongs in its "
            "datasets or a collate_fn.",
            type(module).__name__,
            " and ".join(own),
        )
    try:
        module.prepare_data()
        module.setup("fit")
        return module.train_dataloader(), module.val_dataloader()
    except Exception as error:  # somebody else's code
        raise DataError(f"the data module {type(module).__name__} fails: {first_line(error)}.") from error
