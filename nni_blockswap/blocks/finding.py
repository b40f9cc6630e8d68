"""Where a network can be swapped: found by its structure, in one forward pass on a copy, whatever its classes are."""

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nni_blockswap.blocks.chains import Chains
from nni_blockswap.blocks.conditions import Patterns, obstacle_alone, obstacles
from nni_blockswap.blocks.flow import Flow, convolutions, under, watch
from nni_blockswap.blocks.found import Findings, FoundSite, Kept
from nni_blockswap.blocks.origin import one_image, repeated
from nni_blockswap.blocks.surgery import extract, replace
from nni_blockswap.draws import drawn_alike
from nni_blockswap.errors import SpaceError, first_line
from nni_blockswap.networks import copied, tensors_in


def find(model: nn.Module, example_input: Any, include: Patterns = None, exclude: Patterns = None) -> Findings:
    """Sites of a network and the convolutions that stay, both in forward order. The network is not changed.

    The first that fits is taken:

    1. ``branch``: two k x k convolutions, at most normalisation, activation and dropout between them, whose result is
       added to something, as in a residual block of the paper;
    2. ``inverted``: 1x1 expansion, depthwise k x k, (squeeze and excitation,) 1x1 projection in a block of their own;
    3. ``conv``: any other k x k convolution with k >= 3 and groups = 1 that is not the first of the network.

    Args:
        model: a network in any mode, on any device.
        example_input: what its forward takes: a tensor, a list of images, or a tuple of positional arguments.
        include: patterns over module paths; nothing else is swapped.
        exclude: patterns over module paths; these stay.

    Raises:
        SpaceError: no site, a pattern that matches nothing, weights that are not finite or not in float32, statistics
            that are NaN, or a forward pass that fails.

    Example:
        >>> block = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 5, stride=2, padding=2))
        >>> [(site.path, site.kind, site.out_shape) for site in find(block, torch.zeros(1, 3, 10, 10)).sites]
        [('2', 'conv', (16, 4, 4))]
    """
    _check(model)
    arguments = example_input if isinstance(example_input, tuple) else (example_input,)
    flow = _forward(model, arguments)
    against = obstacles(model, flow, include, exclude)
    sites = Chains(model, flow, against).sites()
    against |= _fixed(model, arguments, sites)
    sites = [site for site in sites if site.parts[0] not in against]
    kept = _kept(model, flow, sites, against)
    if not sites:
        raise SpaceError(f"no convolution of {type(model).__name__} can be swapped: {_summary(kept)}.")
    return Findings(tuple(sites), tuple(kept))


def _check(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise SpaceError(f"a network is an nn.Module; this is a {type(model).__name__}.")
    if isinstance(model, torch.jit.ScriptModule):
        raise SpaceError("a ScriptModule cannot be changed; give the network that it was compiled from.")
    if not convolutions(model):
        raise SpaceError(f"{type(model).__name__} has no convolution, so that there is nothing to swap.")
    for name, weight in model.named_parameters():
        if nn.parameter.is_lazy(weight):
            raise SpaceError(f"'{name}' has no shape yet; run the network on an example once, then give it.")
        if not bool(weight.isfinite().all()):
            raise SpaceError(f"'{name}' holds numbers that are not finite; give a network with sound weights.")
        if weight.dtype != torch.float32:
            raise SpaceError(f"'{name}' is {weight.dtype}; give the network in float32: model.float().")
    for name, value in model.named_buffers():
        if bool(value.isnan().any()):  # a mask may be infinite
            raise SpaceError(f"'{name}' holds NaN; give a network with sound statistics.")


def _forward(model: nn.Module, arguments: tuple[Any, ...]) -> Flow:
    """A pass in eval mode, of a copy."""
    try:
        network, arguments = copied(model), copy.deepcopy(arguments)
    except Exception as error:
        raise SpaceError(f"{type(model).__name__} cannot be copied: {first_line(error)}.") from error
    try:
        return watch(network.eval(), arguments)
    except Exception as error:
        hint = "; give all that its forward takes, as a tuple" if isinstance(error, TypeError) else ""
        message = f"{type(model).__name__} does not run on the example input: {first_line(error)}{hint}."
        raise SpaceError(message) from error


def _fixed(model: nn.Module, arguments: tuple[Any, ...], sites: Sequence[FoundSite]) -> dict[str, str]:
    """Why a site cannot be swapped after all, by the paths of its parts."""
    if not sites:
        return {}
    expected = {training: _steady(model, arguments, training) for training in (False, True)}
    if _trial(model, arguments, sites, expected) is None:
        return {}
    reasons = {site: _trial(model, arguments, [site], expected) for site in sites}
    return {part: reason for site, reason in reasons.items() if reason for part in site.parts}


def _steady(model: nn.Module, arguments: tuple[Any, ...], training: bool) -> list[Tensor] | None:
    """All tensors that it gives; None where it does not run, or gives others each time: it draws from its own seed."""
    try:
        given, again = (_given(copied(model), arguments, training) for _ in range(2))
        return None if _differ(given, again) else given
    except Exception:  # a detector asks for targets, and sparse tensors cannot be compared
        return None


def _trial(
    model: nn.Module,
    arguments: tuple[Any, ...],
    sites: Sequence[FoundSite],
    expected: Mapping[bool, Sequence[Tensor] | None],
) -> str | None:
    """What goes wrong when modules that are no convolutions stand at ``sites``: other code may use the originals.

    They do what the originals do, so that where it is known the network has to give the ``expected``, by mode. That is
    of the first pass of a copy of its own: a pass may leave a state behind.
    """
    ran: Counter[FoundSite] = Counter()
    evaluated, trained = expected[False], expected[True]
    try:
        given = _given(_with_others(model, sites, ran), arguments, training=False)
    except Exception as error:
        return f"the network needs it as it is: {first_line(error)}"
    if not all(ran[site] == 1 for site in sites):
        return "the network does not run what stands in its place"
    if evaluated is not None and _differ(evaluated, given):
        return "the network does more between the convolutions than can be seen"
    if trained is None:
        return None
    try:
        given = _given(_with_others(model, sites, ran), arguments, training=True)
    except Exception as error:
        return f"the network needs it as it is in training mode: {first_line(error)}"
    return "the network does more between the convolutions in training mode" if _differ(trained, given) else None


def _with_others(model: nn.Module, sites: Sequence[FoundSite], ran: Counter[FoundSite]) -> nn.Module:
    """A copy with modules that are no convolutions at ``sites``; every run of one is counted in ``ran``."""
    network = copied(model)
    for site in sites:
        other = nn.Sequential(extract(network, site))
        other.register_forward_hook(lambda *_, site=site: ran.update([site]))
        replace(network, site, other)
    return network


def _given(network: nn.Module, arguments: tuple[Any, ...], training: bool) -> list[Tensor]:
    """All tensors that it gives in a mode; in training mode for its first image, twice: BN takes no single values."""
    images = (repeated(one, 2) for one in one_image(arguments)) if training else copy.deepcopy(arguments)
    with torch.no_grad(), drawn_alike(next(network.parameters()).device):
        return list(tensors_in(network.train(training)(*images)))


def _differ(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether any two are apart by more than rounding."""
    if [one.shape for one in some] != [one.shape for one in others]:
        return True
    return not all(torch.allclose(*pair, 1e-3, 1e-5, equal_nan=True) for pair in zip(some, others, strict=True))


def _kept(model: nn.Module, flow: Flow, sites: Sequence[FoundSite], against: Mapping[str, str]) -> list[Kept]:
    """The convolutions outside all sites, those that the forward pass reached in its order and first."""
    found = convolutions(model)
    alone = {path: obstacle_alone(conv) for path, conv in found.items() if isinstance(conv, nn.Conv2d)}
    order = dict.fromkeys((*(step.path for step in flow.steps if step.path in found), *found))
    swapped = [part for site in sites for part in site.parts]
    outside = [path for path in order if not any(under(path, part) for part in swapped)]
    return [Kept(path, reason) for path in outside if (reason := against.get(path) or alone.get(path))]


def _summary(kept: Sequence[Kept]) -> str:
    """Every reason, how often it holds and the first path that it holds for."""
    counts, firsts = Counter(one.reason for one in kept), {one.reason: one.path for one in reversed(kept)}
    return ", ".join(f"{reason} ({count}, as {firsts[reason]})" for reason, count in counts.items())
