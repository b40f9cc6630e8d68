"""BN folded into the convolution before it: gamma (W x + b - mu) / sigma + beta is a convolution, too."""

from collections import Counter
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from nni_blockswap.errors import ExportError, first_line
from nni_blockswap.exporting.dead_code import drop_dead
from nni_blockswap.exporting.snapshot import Snapshot
from nni_blockswap.exporting.tracing import FlatTracer

Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d | Transposed
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def fold_batch_norms(snapshot: Snapshot) -> None:
    """Fold every BN that alone takes what a convolution gives; an identity stays in its place.

    Convolutions whose weight is computed from others, as by ``weight_norm``, stay as they are, and transposed ones in
    groups, which torch folds wrongly.

    Raises:
        ExportError: the network cannot be traced, or gives other outputs afterwards.
    """
    network = snapshot.network
    try:
        pairs = list(_pairs(network))
    except Exception as error:
        raise ExportError(
            f"which BN follows which convolution cannot be seen ({first_line(error)}); export without folding."
        ) from error
    replaced: dict[nn.Module, nn.Module] = {}
    for convolution, norm in pairs:
        replaced[convolution] = fuse_conv_bn_eval(convolution, norm, transpose=isinstance(convolution, Transposed))
        replaced[norm] = nn.Identity()
    for name, module in list(network.named_modules(remove_duplicate=False)):
        if module in replaced:
            network.set_submodule(name, replaced[module])
    with torch.no_grad():
        snapshot.check_same(network(snapshot.images.clone()), "with BN folded the network")


def _pairs(network: nn.Module) -> Iterator[tuple[Convolution, BatchNorm]]:
    """(convolution, BN) where the first feeds the second and nothing else, and both are called once."""
    whole = nn.Sequential(network)
    graph = FlatTracer().trace(whole)
    drop_dead(graph, whole)
    called = [node for node in graph.nodes if node.op == "call_module"]
    times = Counter(whole.get_submodule(node.target) for node in called)
    for node in called:
        convolution = whole.get_submodule(node.target)
        own = [name for name, _ in convolution.named_parameters(recurse=False)]
        followers = [whole.get_submodule(user.target) for user in node.users if user.op == "call_module"]
        grouped = isinstance(convolution, Transposed) and convolution.groups > 1
        if not isinstance(convolution, Convolution) or grouped or "weight" not in own:
            continue
        if len(node.users) == len(followers) == 1:
            norm = followers[0]
            if isinstance(norm, BatchNorm) and norm.track_running_stats and times[convolution] == times[norm] == 1:
                yield convolution, norm
