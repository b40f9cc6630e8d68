"""BlockSwap for NNI: Fisher-guided block substitution under a budget (Turner et al., ICLR 2020).

The names below are resolved on first use, so that importing the package costs nothing: torch takes seconds to import,
NNI's architecture-search half some more, and NNI gives a tuner ten seconds to connect.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nni_blockswap.architecture import Architecture
    from nni_blockswap.blocks.network import swap_blocks
    from nni_blockswap.cost.budget import Budget
    from nni_blockswap.exporting import export
    from nni_blockswap.library.assembling import assemble
    from nni_blockswap.library.library import Library
    from nni_blockswap.own import build_library, search
    from nni_blockswap.scoring.proxies.fisher import fisher_information
    from nni_blockswap.searching import SearchSettings
    from nni_blockswap.strategy import BlockSwapStrategy
    from nni_blockswap.training.attention import attention_transfer_loss
    from nni_blockswap.training.distilling import distill
    from nni_blockswap.tuner import BlockSwapTuner

__all__ = [
    "Architecture",
    "BlockSwapStrategy",
    "BlockSwapTuner",
    "Budget",
    "Library",
    "SearchSettings",
    "assemble",
    "attention_transfer_loss",
    "build_library",
    "distill",
    "export",
    "fisher_information",
    "search",
    "swap_blocks",
]
__version__ = "0.1.0"

_HOMES = {
    "Architecture": "architecture",
    "BlockSwapStrategy": "strategy",
    "BlockSwapTuner": "tuner",
    "Budget": "cost.budget",
    "Library": "library.library",
    "SearchSettings": "searching",
    "assemble": "library.assembling",
    "attention_transfer_loss": "training.attention",
    "build_library": "own",
    "distill": "training.distilling",
    "export": "exporting",
    "fisher_information": "scoring.proxies.fisher",
    "search": "own",
    "swap_blocks": "blocks.network",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
