"""Zero-cost proxies, one short file each. One row of the registry a proxy."""

from nni_blockswap.errors import ConfigError
from nni_blockswap.scoring.proxies.accuracy import Accuracy
from nni_blockswap.scoring.proxies.base import Proxy, Score
from nni_blockswap.scoring.proxies.fisher import FisherPotential
from nni_blockswap.scoring.proxies.grad_norm import GradNorm
from nni_blockswap.scoring.proxies.l2_norm import L2Norm

__all__ = ["PROXIES", "Proxy", "Score", "make_proxy"]

PROXIES: dict[str, type[Proxy]] = {
    proxy.name: proxy
    for proxy in (FisherPotential, GradNorm, L2Norm, Accuracy)  # the first is the default
}


def make_proxy(name: str) -> Proxy:
    """The proxy called ``name``. Raises ConfigError where there is none."""
    if name not in PROXIES:
        raise ConfigError(f"there is no proxy '{name}'; choose from {', '.join(PROXIES)}.")
    return PROXIES[name]()
