"""Zero-cost proxies, one short file each, in a registry that others may add to."""

from importlib import import_module
from typing import Any, TypeVar, cast

from nni_blockswap.errors import ConfigError
from nni_blockswap.scoring.proxies.accuracy import Accuracy
from nni_blockswap.scoring.proxies.base import Proxy, Score
from nni_blockswap.scoring.proxies.fisher import FisherPotential
from nni_blockswap.scoring.proxies.fisher_variants import BlockLogFisher, ChannelFisher, DrawLogFisher
from nni_blockswap.scoring.proxies.grad_l2 import GradL2
from nni_blockswap.scoring.proxies.grad_norm import GradNorm
from nni_blockswap.scoring.proxies.l2_norm import L2Norm
from nni_blockswap.scoring.proxies.naswot import Naswot
from nni_blockswap.scoring.proxies.params import Params
from nni_blockswap.scoring.proxies.snip import Snip
from nni_blockswap.scoring.proxies.synflow import Synflow
from nni_blockswap.scoring.proxies.taylor import Taylor
from nni_blockswap.scoring.proxies.zen import ZenScore
from nni_blockswap.scoring.proxies.zico import ZiCo

__all__ = ["PAPER", "PROXIES", "Proxy", "Score", "make_proxy", "register"]

PROXIES: dict[str, type[Proxy]] = {}
"""By name; the first is the default."""

P = TypeVar("P", bound=type[Proxy])

MEMBERS = ("name", "higher_is_better", "needs_weight_gradients", "measure")


def register(proxy: P) -> P:
    """Let ``proxy`` be asked for by its name: a decorator for a class of your own.

    A process that has not imported your module, as NNI's dispatcher, does not know the name: there the proxy is written
    "module:Class", which is imported.

    Raises:
        ConfigError: the class is no proxy, or another one has its name.
    """
    _check(proxy)
    known = PROXIES.setdefault(proxy.name, proxy)
    if _path(known) != _path(proxy):  # the same class again is a notebook's cell run again
        raise ConfigError(f"there is a proxy '{proxy.name}' already, {_path(known)}; give yours another name.")
    PROXIES[proxy.name] = proxy
    return proxy


def make_proxy(name: str) -> Proxy:
    """The proxy called ``name``, or the class that a name written "module:Class" stands for.

    Raises:
        ConfigError: there is none, or it cannot be imported.
    """
    if ":" in name:
        return _imported(name)()
    if name not in PROXIES:
        raise ConfigError(f"there is no proxy '{name}'; choose from {', '.join(PROXIES)}, or name a module:Class.")
    return PROXIES[name]()


def _imported(path: str) -> type[Proxy]:
    module, _, name = path.partition(":")
    try:
        found = getattr(import_module(module), name)
    except Exception as error:
        raise ConfigError(
            f"the proxy '{path}' cannot be imported ({type(error).__name__}: {error}); "
            f"start in the folder that holds '{module.split('.')[0]}', or put it on PYTHONPATH."
        ) from error
    _check(found)
    return cast(type[Proxy], found)


def _check(proxy: Any) -> None:
    """Raise ConfigError unless ``proxy`` has what the protocol asks for, and a name that stands in a combination."""
    if not isinstance(proxy, type) or not all(hasattr(proxy, part) for part in MEMBERS):
        raise ConfigError(f"{proxy!r} is no proxy: a class that has {', '.join(MEMBERS)} is one.")
    name = cast(type[Proxy], proxy).name
    if not name or set(name) & set("+: "):
        raise ConfigError(f"a proxy's name has no '+', ':' or space; {_path(proxy)} calls itself '{name}'.")


def _path(proxy: type[Proxy]) -> str:
    return f"{proxy.__module__}:{proxy.__qualname__}"


PAPER = tuple(register(proxy).name for proxy in (FisherPotential, GradNorm, L2Norm, Accuracy))
"""Fisher potential and the other metrics of the paper's Table 1."""

for _proxy in (
    ChannelFisher, BlockLogFisher, DrawLogFisher, GradL2, Naswot, Params, Snip, Synflow, Taylor, ZenScore, ZiCo,
):  # fmt: skip
    register(_proxy)
