"""Chains of modules that can be swapped: a residual branch's two convolutions, an inverted residual's, a single one."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile

from torch import nn

from nni_blockswap.blocks.conditions import is_depthwise, is_pointwise, keeps_size, obstacle_alone, partners_in
from nni_blockswap.blocks.flow import Call, Flow, convolutions, under
from nni_blockswap.blocks.found import FoundSite, Kind
from nni_blockswap.blocks.narrowing import is_narrowable, layers
from nni_blockswap.blocks.norms import activation_near, norm_near

Chain = Sequence[Call]
"""Steps each of which takes what the one before gives, and alone does so."""


class Chains:
    """The chains of a network, by a forward pass of it.

    Args:
        network: the network.
        flow: the forward pass.
        obstacles: why a convolution can be part of no chain, by path.
    """

    def __init__(self, network: nn.Module, flow: Flow, obstacles: Mapping[str, str]) -> None:
        self._network = network
        self._flow = flow
        self._all = convolutions(network)
        self._partners = partners_in(network)
        self._usable = {path: conv for path, conv in self._all.items() if path not in obstacles}

    def sites(self) -> list[FoundSite]:
        """The sites in forward order; a convolution is in one at most."""
        found: dict[int, FoundSite] = {}
        taken: set[str] = set()
        kinds: list[tuple[Kind, Callable[[Call], Chain]]] = [
            ("branch", self._branch),
            ("inverted", self._inverted),
            ("conv", self._single),
        ]
        for kind, search in kinds:
            for step in self._flow.steps:
                chain = search(step) if self._conv(step) else ()
                inside = {path for call in chain for path in self._convolutions(call)}
                if chain and not inside & taken:
                    found[step.begin] = self._found(kind, chain)
                    taken |= inside
        sites = [found[begin] for begin in sorted(found)]
        often = Counter(site.path for site in sites)
        return [replace(site, path=site.parts[0]) if often[site.path] > 1 or not site.path else site for site in sites]

    # --- the three kinds: the step that begins a chain -> the chain, or () --------------------------------------------

    def _branch(self, first: Call) -> Chain:
        chain = self._to_next_convolution(first)
        convs = [self._conv(chain[0]), self._conv(chain[-1])] if chain else []
        if not convs or not all(conv and keeps_size(conv) and not obstacle_alone(conv) for conv in convs):
            return ()
        return chain if len({conv.kernel_size for conv in convs if conv}) == 1 and self._is_added(chain[-1]) else ()

    def _inverted(self, first: Call) -> Chain:
        rise = self._to_next_convolution(first)
        fall = self._to_next_convolution(rise[-1]) if rise else ()
        if not fall:
            return ()
        expand, depthwise, project = (self._conv(step) for step in (first, fall[0], fall[-1]))
        if not (expand and depthwise and project):
            return ()
        if not (is_pointwise(expand) and is_depthwise(depthwise) and is_pointwise(project) and keeps_size(depthwise)):
            return ()
        widens = expand.in_channels < depthwise.in_channels > project.out_channels
        chain = (*rise, *fall[1:])
        inside = {path for call in chain for path in self._convolutions(call)}
        block = common([call.path for call in chain])
        return chain if widens and inside == {path for path in self._all if under(path, block)} else ()

    def _single(self, step: Call) -> Chain:
        conv = self._conv(step)
        return (step,) if conv and not obstacle_alone(conv) else ()

    # --- how values go on ---------------------------------------------------------------------------------------------

    def _to_next_convolution(self, first: Call) -> Chain:
        """From one convolution to the next, where all between them can be replaced with them."""
        chain = [first]
        for call in self._onwards(first):
            chain.append(call)
            if self._is_convolution(call):
                return chain
            if not self._is_replaceable(call):
                return ()
        return ()

    def _onwards(self, call: Call) -> Iterator[Call]:
        while (after := self._flow.after(call)) is not None:
            yield after
            call = after

    def _is_added(self, call: Call) -> bool:
        """Whether what a call gives is added to another value before it comes to a convolution."""
        if any(user.adds and len(user.inputs) > 1 for user in self._flow.users[call.output][:1]):
            return True
        after = self._flow.after(call)
        return after is not None and self._is_light(after) and self._is_added(after)

    def _is_replaceable(self, call: Call) -> bool:
        if not call.simple or call.in_shape != call.out_shape or not self._is_light(call):
            return False
        if call.function is not None:
            return call.function != ""
        if any(under(path, call.path) for path in self._partners):  # what it shares stays, and is paid for there
            return False
        return self._flow.times[call.path] == 1 or not self._has_tensors(call.path)

    def _is_light(self, call: Call) -> bool:
        """Whether it holds no convolutions but those of squeeze-and-excitation, which see 1x1 maps."""
        inside = set(self._convolutions(call))
        ran = [step for step in self._flow.steps if step.function is None and step.path in inside]
        return not self._is_convolution(call) and all(step.in_shape[2:] == (1, 1) for step in ran)

    def _has_tensors(self, path: str) -> bool:
        module = self._network.get_submodule(path)
        return bool([*module.parameters(), *module.buffers()])

    def _convolutions(self, call: Call) -> list[str]:
        """Paths of the convolutions that run in a call; a module may hold some that have their path elsewhere."""
        if call.function is not None:
            return []
        inside = set(self._network.get_submodule(call.path).modules())
        return [path for path, conv in self._all.items() if conv in inside]

    def _is_convolution(self, call: Call) -> bool:
        return call.function is None and call.path in self._all

    def _conv(self, call: Call) -> nn.Conv2d | None:
        """The convolution that a call is, if it can be part of a chain."""
        conv = self._usable.get(call.path) if call.function is None else None
        return conv if isinstance(conv, nn.Conv2d) else None

    # --- what is told of a chain --------------------------------------------------------------------------------------

    def _found(self, kind: Kind, chain: Chain) -> FoundSite:
        convs = [conv for conv in map(self._conv, chain) if conv]
        main = convs[1] if kind == "inverted" else convs[0]
        strides = list(zip(*(conv.stride for conv in convs), strict=True))
        modules = [call.path for call in chain if call.function is None]
        ends = [modules[0], modules[-1]]
        begin, end = chain[0].begin, chain[-1].begin
        norm = norm_near(self._network, self._flow, begin, end)
        return FoundSite(
            path=self._block(ends) if kind == "inverted" else common(ends),
            kind=kind,
            steps=tuple(call.path if call.function is None else call.function for call in chain),
            shared=tuple(path for path in dict.fromkeys(modules) if self._flow.times[path] > 1),
            in_shape=chain[0].in_shape[1:],
            out_shape=chain[-1].out_shape[1:],
            middle_channels=convs[0].out_channels,
            kernel=main.kernel_size,
            stride=(math.prod(strides[0]), math.prod(strides[1])),
            padding=main.padding,
            dilation=main.dilation,
            bias=convs[-1].bias is not None,
            padding_mode=main.padding_mode,
            norm=norm,
            activation=activation_near(self._network, self._flow, begin, end, norm),
            rigid=next(
                (call.path or str(call.function) for call in chain[1:-1] if not self._is_narrowable(call)), None
            ),
        )

    def _is_narrowable(self, call: Call) -> bool:
        if call.function is not None or self._is_convolution(call):
            return True
        return all(is_narrowable(layer, call.in_shape[1:]) for layer in layers(self._network.get_submodule(call.path)))

    def _block(self, paths: Sequence[str]) -> str:
        """The largest module around an inverted residual that holds no other convolution and is no mere sequence."""
        block = common(paths)
        convs = [path for path in self._all if under(path, block)]
        while block:
            parent = block.rpartition(".")[0]
            outer = [path for path in self._all if under(path, parent)]
            if outer != convs or isinstance(self._network.get_submodule(parent), (nn.Sequential, nn.ModuleList)):
                break
            block = parent
        return block


def common(paths: Sequence[str]) -> str:
    """Path of the smallest module that holds all of ``paths``; of one path, itself.

    Example:
        >>> common(["layer1.0.conv1", "layer1.0.conv2"]), common(["features.3"]), common(["stem", "head"])
        ('layer1.0', 'features.3', '')
    """
    levels = zip(*(path.split(".") for path in paths), strict=False)
    return ".".join(names[0] for names in takewhile(lambda names: len(set(names)) == 1, levels))
