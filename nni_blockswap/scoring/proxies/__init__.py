"""Zero-cost proxies, one short file each, in a registry that others may add to."""

from typing import Any, TypeVar, cast

from nni_blockswap.errors import ConfigError
from nni_blockswap.registry import Registry
from nni_blockswap.scoring.proxies.base import Proxy, Score, in_numbers, mean_score

__all__ = ["PAPER", "PROXIES", "Proxy", "Score", "in_numbers", "make_proxy", "mean_score", "register"]

PAPER = ("fisher", "grad_norm", "l2_norm", "accuracy")
"""Fisher potential and the other metrics of the paper's Table 1."""

PROXIES: Registry[type[Proxy]] = Registry(
    "proxy",
    {
        "fisher": f"{__name__}.fisher:FisherPotential",
        "grad_norm": f"{__name__}.grad_norm:GradNorm",
        "l2_norm": f"{__name__}.l2_norm:L2Norm",
        "accuracy": f"{__name__}.accuracy:Accuracy",
        "fisher_channel": f"{__name__}.fisher_variants:ChannelFisher",
        "fisher_log": f"{__name__}.fisher_variants:BlockLogFisher",
        "fisher_draws": f"{__name__}.fisher_variants:DrawLogFisher",
        "grad_l2": f"{__name__}.grad_l2:GradL2",
        "macs": f"{__name__}.cost:Macs",
        "naswot": f"{__name__}.naswot:Naswot",
        "params": f"{__name__}.cost:Params",
        "snip": f"{__name__}.snip:Snip",
        "synflow": f"{__name__}.synflow:Synflow",
        "taylor": f"{__name__}.taylor:Taylor",
        "zen": f"{__name__}.zen:ZenScore",
        "zico": f"{__name__}.zico:ZiCo",
    },
)
"""The first is the default."""

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
    if proxy.name in PROXIES and _path(PROXIES[proxy.name]) != _path(proxy):  # the same again: a notebook's cell
        raise ConfigError(
            f"there is a proxy '{proxy.name}' already, {_path(PROXIES[proxy.name])}; give yours another name."
        )
    return cast(P, PROXIES.register(proxy.name, proxy))


def make_proxy(name: str) -> Proxy:
    """The proxy called ``name``, or the class that a name written "module:Class" stands for.

    Raises:
        ConfigError: there is none, or it cannot be imported.
    """
    found = PROXIES[name]
    _check(found)
    return found()


def _check(proxy: Any) -> None:
    """Raise ConfigError unless ``proxy`` has what the protocol asks for, and a name that stands in a combination."""
    if not isinstance(proxy, type) or not all(hasattr(proxy, part) for part in MEMBERS):
        raise ConfigError(f"{proxy!r} is no proxy: a class that has {', '.join(MEMBERS)} is one.")
    name = cast(type[Proxy], proxy).name
    if not name or set(name) & set("+: "):
        raise ConfigError(f"a proxy's name has no '+', ':' or space; {_path(proxy)} calls itself '{name}'.")


def _path(proxy: type[Proxy]) -> str:
    return f"{proxy.__module__}:{proxy.__qualname__}"
