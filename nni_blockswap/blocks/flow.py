"""How values flow through a network: one forward pass, watched.

Nothing is traced symbolically, so that any forward that runs can be watched: loops, conditions, lists of images.
"""

import ast
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nni_blockswap.networks import tensors_in

ACTIVATIONS = {
    "celu": "CELU", "elu": "ELU", "gelu": "GELU", "hardswish": "Hardswish", "hardtanh": "Hardtanh",
    "leaky_relu": "LeakyReLU", "mish": "Mish", "prelu": "PReLU", "relu": "ReLU", "relu6": "ReLU6", "selu": "SELU",
    "silu": "SiLU", "softplus": "Softplus",
}  # fmt: skip
"""Activation functions, and the modules of torch.nn that do the same."""

DROPOUTS = {"dropout": "Dropout", "dropout2d": "Dropout2d"}


@dataclass(frozen=True)
class Call:
    """Something that ran: a module, or a function.

    A *value* is a tensor that depends on the network's input, known by a number; parameters, buffers and what is made
    of these alone are constants. An in-place function gives a new value.
    """

    path: str
    """Of the module; of the module whose forward called the function."""

    function: str | None
    """None for a module; else what does the same in torch.nn, as ``"ELU(alpha=0.5)"``, or "" where nothing does."""

    inputs: tuple[int, ...]
    """The different values that go in."""

    output: int | None
    """The value that comes out; None if that is not exactly one tensor."""

    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    """Of the first tensor that goes in, and that comes out."""

    simple: bool
    """Whether one tensor goes in, no constant beside it, and a module has no other argument."""

    adds: bool
    """Whether tensors are added in it."""

    begin: int
    end: int
    """The steps of the pass that it spans."""


@dataclass
class Flow:
    """A watched forward pass."""

    steps: list[Call] = field(default_factory=list)
    """In order: convolutions, functions, and modules without a convolution inside, each as the largest such module."""

    containers: list[Call] = field(default_factory=list)
    """Modules with convolutions inside, in the order in which they ended."""

    activations: list[tuple[int, str]] = field(default_factory=list)
    """Steps in which an activation ran: as the path of a module that keeps the maps' shape, or as ``"ReLU()"``."""

    @cached_property
    def users(self) -> Mapping[int | None, list[Call]]:
        """Steps that take a value. Read it when the pass is over."""
        users: defaultdict[int | None, list[Call]] = defaultdict(list)
        for step in self.steps:
            for value in step.inputs:
                users[value].append(step)
        return users

    @cached_property
    def times(self) -> Counter[str]:
        """How often a module ran, by path. Read it when the pass is over."""
        return Counter(call.path for call in (*self.steps, *self.containers) if call.function is None)

    def after(self, call: Call) -> Call | None:
        """What alone takes the value that ``call`` gives, and no other: a step, or a module that holds its users."""
        users = self.users[call.output]
        if len(users) == 1:
            return users[0] if len(users[0].inputs) == 1 else None
        holders = (whole for whole in self.containers if whole.inputs == (call.output,) != (whole.output,) and users)
        return next((one for one in holders if all(one.begin <= user.begin < one.end for user in users)), None)


def watch(network: nn.Module, arguments: tuple[Any, ...]) -> Flow:
    """Run ``network`` on ``arguments``, without gradients, and tell how the values flowed.

    It is left with hooks: give a copy.
    """
    watching = _Watch(network)
    with torch.no_grad(), watching:
        network(*arguments)
    return watching.flow


def convolutions(network: nn.Module) -> dict[str, nn.Module]:
    """Convolutions by path, of any dimension, and those of classes of their own (quantised, deformable)."""
    kinds = ("in_channels", "out_channels", "kernel_size", "groups")
    return {
        path: module
        for path, module in network.named_modules()
        if isinstance(module, nn.modules.conv._ConvNd)
        or (not list(module.children()) and all(hasattr(module, name) for name in kinds))
    }


def under(path: str, ancestor: str) -> bool:
    """Whether the module at ``path`` is the one at ``ancestor`` or lies inside it."""
    return path == ancestor or not ancestor or path.startswith(f"{ancestor}.")


@dataclass
class _Running:
    """A module or function that runs."""

    path: str
    function: str | None
    given: list[Tensor]
    values: list[int | None]
    simple: bool
    begin: int
    activations: int
    """How many had run before."""

    adds: bool = False


class _Watch(TorchFunctionMode):
    """Numbers the values and writes down what runs; hooks tell where modules begin and end."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.flow = Flow()
        self._numbers: dict[int, tuple[ref[Tensor], int | None]] = {}
        self._fresh = count()
        self._open: list[_Running] = []
        self._whole: list[_Running] = []  # the open ones inside which nothing is a step of its own, outermost first
        self._bare: set[str] = set()  # modules that hold nothing: they do what their functions do
        for constant in (*network.parameters(), *network.buffers()):
            self._numbers[id(constant)] = ref(constant), None
        names = set(convolutions(network).values())
        for path, module in network.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue
            if isinstance(module, nn.PReLU) or not [*module.children(), *module.parameters(), *module.buffers()]:
                self._bare.add(path)
            self._hook(path, module, whole=module in names or names.isdisjoint(module.modules()))

    def _hook(self, path: str, module: nn.Module, whole: bool) -> None:
        def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = list(tensors_in((args, kwargs)))
            simple = len(given) == len(args) == 1 and args[0] is given[0] and not kwargs
            self._open.append(self._begin(path, None, given, simple))
            if whole:
                self._whole.append(self._open[-1])

        def end(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            running, outputs = self._open.pop(), list(tensors_in(output))
            if path in self._bare and _keeps_maps(running.given, outputs):
                before = running.activations
                self.flow.activations[before:] = [(step, path) for step, _ in self.flow.activations[before:]]
            if whole:
                self._whole.pop()
                self._step(running, outputs)
            elif not self._whole:
                self.flow.containers.append(self._call(running, outputs, len(self.flow.steps)))
            if not self._open:  # whoever called the network takes what it gives
                self._step(self._begin("", "", outputs, simple=False), [])

        module.register_forward_pre_hook(begin, with_kwargs=True)
        module.register_forward_hook(end)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given, name = list(tensors_in((args, kwargs))), func.__name__.removesuffix("_")
        caller, spelled = self._open[-1].path if self._open else "", _spelled(name, args, kwargs)
        running = self._begin(caller, spelled, given, simple=len(given) == 1)
        running.adds = name == "add"
        result = func(*args, **kwargs)
        if name in ACTIVATIONS:
            self.flow.activations.append((len(self.flow.steps), spelled))
        outputs = list(tensors_in(result))
        if outputs:  # else it asked for a shape
            self._step(running, outputs)
        return result

    def _begin(self, path: str, function: str | None, given: list[Tensor], simple: bool) -> _Running:
        values, flow = [self._value(one) for one in given], self.flow
        return _Running(path, function, given, values, simple, len(flow.steps), len(flow.activations))

    def _step(self, running: _Running, outputs: list[Tensor]) -> None:
        if self._whole:
            self._whole[0].adds |= running.adds
            return
        in_an_object = running.function is None and not running.given  # such as a list of images of its own class
        depends = in_an_object or any(value is not None for value in running.values)
        for output in outputs:
            self._numbers[id(output)] = ref(output), next(self._fresh) if depends else None
        self.flow.steps.append(self._call(running, outputs, running.begin + 1))

    def _call(self, running: _Running, outputs: list[Tensor], end: int) -> Call:
        inputs = tuple(dict.fromkeys(value for value in running.values if value is not None))
        output = self._value(outputs[0]) if len(outputs) == 1 else None
        in_shape, out_shape = (tuple(tensors[0].shape) if tensors else () for tensors in (running.given, outputs))
        simple = running.simple and len(inputs) == 1
        what = running.path, running.function
        return Call(*what, inputs, output, in_shape, out_shape, simple, running.adds, running.begin, end)

    def _value(self, tensor: Tensor) -> int | None:
        """Its number; what was never seen, such as a tensor out of an object, is a value, too."""
        known, number = self._numbers.get(id(tensor), (None, None))
        if known is None or known() is not tensor:
            number = next(self._fresh)
            self._numbers[id(tensor)] = ref(tensor), number
        return number


def _keeps_maps(given: Sequence[Tensor], outputs: Sequence[Tensor]) -> bool:
    """Whether one batch (N, C, H, W) goes in and one of the same shape comes out."""
    return len(given) == len(outputs) == 1 and given[0].dim() == 4 and given[0].shape == outputs[0].shape


_OPTION = (int, float, str)


def _spelled(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """A function as a module of torch.nn, whose options have the same order and names; "" where none does the same."""
    if name in DROPOUTS and kwargs.get("training", args[2] if len(args) > 2 else True):
        return ""  # it drops in eval mode, too
    options = [("", value) for value in args[1:]] + [(f"{name}=", value) for name, value in kwargs.items()]
    texts = [
        f"{name}{value!r}" for name, value in options if isinstance(value, _OPTION) and not isinstance(value, bool)
    ]
    module = {**ACTIVATIONS, **DROPOUTS}.get(name)
    return f"{module}({', '.join(texts)})" if module else ""


def module_of(spelled: str) -> nn.Module:
    """The module that ``Call.function`` spells.

    Example:
        >>> module_of("Softplus(2.0, threshold=5.0)")
        Softplus(beta=2.0, threshold=5.0)
    """
    call: Any = ast.parse(spelled, mode="eval").body
    named = {option.arg: ast.literal_eval(option.value) for option in call.keywords}
    module: nn.Module = getattr(nn, call.func.id)(*map(ast.literal_eval, call.args), **named)
    return module
