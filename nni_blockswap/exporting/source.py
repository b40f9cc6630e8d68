"""A network as a Python file that needs torch alone: a class for each kind of module, ``build()`` and ``load()``."""

import re
from functools import partial
from keyword import iskeyword

from torch import Tensor, nn

from nni_blockswap.exporting.constructors import Call, layer
from nni_blockswap.exporting.statements import forward_method, literal
from nni_blockswap.exporting.tracing import Outline
from nni_blockswap.exporting.vocabulary import is_layer, is_numbered

FILE = '''"""{title}

    from {stem} import load

    network = load()  # with the weights in {stem}.safetensors, which the package safetensors reads
    outputs = network(images)  # images: a tensor of shape {shape}
"""

{imports}


{classes}def build():
    """The network, with fresh weights."""
    return {network}


def load(path=Path(__file__).with_suffix(".safetensors")):
    """The network with its trained weights, ready for inference."""
    from safetensors.torch import load_file

    with torch.device("meta"):  # the weights come from the file
        network = build()
    network.load_state_dict(load_file(path), assign=True)
    return network.eval()
'''

IMPORTS = {
    "math.": "import math",
    "operator.": "import operator",
    "OrderedDict(": "from collections import OrderedDict",
    "": "from pathlib import Path\n\nimport torch",
    "F.": "import torch.nn.functional as F",
    "nn.": "from torch import nn",
}
"""Lines of import, each with what in the code needs it."""


class Source:
    """Writes Python for networks that ``outline`` has followed."""

    def __init__(self, outline: Outline) -> None:
        self._outline = outline
        self._classes: dict[tuple[str, str], str] = {}
        """The name of each class by that of the original's and its body."""

    def text(self, network: nn.Module, *, title: str, stem: str, shape: str) -> str:
        """The whole file.

        Raises:
            TypeError: something in the network has no spelling that needs torch and Python alone.
        """
        built = self._module(network).layout(4, len("return "))
        classes = "".join(f"class {name}(nn.Module):\n{body}\n\n\n" for (_, body), name in self._classes.items())
        needed = (f"(?<![\\w.]){re.escape(mark)}" for mark in IMPORTS)
        imports = [
            line for mark, line in zip(needed, IMPORTS.values(), strict=True) if re.search(mark, classes + built)
        ]
        return FILE.format(
            title=title, stem=stem, shape=shape, imports="\n".join(imports), classes=classes, network=built
        )

    def _module(self, module: nn.Module) -> Call:
        """The expression that constructs ``module``; the classes that it needs go to ``_classes``."""
        if not self._is_used(module):
            return Call("nn.Identity(", [])  # it keeps a place among others
        if is_layer(module):
            return layer(module)
        if self._outline.is_container(module):
            return self._container(module)
        parts = [(f"{_argument(name)}=", self._module(part)) for name, part in self._parts(module).items()]
        tensors = [(f"{name}=", _empty(getattr(module, name))) for name in self._tensors(module)]
        return Call(f"{self._class(module)}(", [*parts, *tensors])

    def _container(self, module: nn.Module) -> Call:
        places = module._modules.items()  # unlike in named_children a module may stand at two of them
        parts = {name: self._module(part) for name, part in places if part is not None}
        listed = [("", part) for part in parts.values()]
        named = [(f"{literal(name)}: ", part) for name, part in parts.items()]
        if isinstance(module, nn.ModuleDict):
            return Call("nn.ModuleDict({", named, "})")
        if isinstance(module, nn.ModuleList):
            return Call("nn.ModuleList([", listed, "])")
        if is_numbered(module):
            return Call("nn.Sequential(", listed)
        return Call("nn.Sequential(OrderedDict({", named, "}))")

    def _class(self, module: nn.Module) -> str:
        """The name of the class that does what ``module`` does."""
        base = type(module).__name__.strip("_")
        body = "\n\n".join(filter(None, [self._constructor(module), self._forward(module)]))
        same_name = [original for original, _ in self._classes if original == base]
        return self._classes.setdefault((base, body), f"{base}{len(same_name) + 1}" if same_name else base)

    def _constructor(self, module: nn.Module) -> str:
        parts, tensors = self._parts(module), self._tensors(module)
        if not parts and not tensors:
            return ""
        lines = [f"def __init__({', '.join(['self', *map(_argument, parts), *tensors])}):", "    super().__init__()"]
        lines += [f"    {_kept(name)}" for name in parts]
        for name in tensors:
            learned = isinstance(getattr(module, name), nn.Parameter)
            lines.append(f"    self.{name} = {name}" if learned else f'    self.register_buffer("{name}", {name})')
        return _indented(lines)

    def _forward(self, module: nn.Module) -> str:
        place = partial(self._place, module)
        ways = {_indented(forward_method(graph, place)) for graph in self._outline.graphs.get(module, [])}
        if len(ways) > 1:
            raise TypeError(f"a {type(module).__name__} is called more than once and does not do the same each time")
        return "".join(ways)

    def _place(self, owner: nn.Module, path: str) -> str:
        """How a method of ``owner`` names what lies at ``path`` below it, such as ``self.heads["main"][0]``."""
        text, module = "self", owner
        for atom in path.split("."):
            container = self._outline.is_container(module)
            if container and isinstance(module, nn.ModuleDict):
                text += f"[{literal(atom)}]"
            elif container and is_numbered(module):
                text += f"[{atom}]"
            else:
                text = f"{text}.{atom}" if atom.isidentifier() else f"getattr({text}, {literal(atom)})"
            module = module._modules.get(atom) or module
        return text

    def _parts(self, module: nn.Module) -> dict[str, nn.Module]:
        return {name: part for name, part in module.named_children() if self._is_used(part)}

    def _tensors(self, module: nn.Module) -> list[str]:
        return sorted(self._outline.read.get(module, ()))

    def _is_used(self, module: nn.Module) -> bool:
        return any(part in self._outline.used for part in module.modules())


def _argument(name: str) -> str:
    """The name of a constructor's argument for the part called ``name``: itself where Python allows it."""
    return name if name.isidentifier() and not iskeyword(name) else re.sub(r"\W", "_", f"part_{name}")


def _kept(name: str) -> str:
    argument = _argument(name)
    return f"self.{name} = {name}" if argument == name else f"self.add_module({literal(name)}, {argument})"


def _empty(tensor: Tensor) -> str:
    made = f"torch.empty({literal(tuple(tensor.shape))})"
    return f"nn.Parameter({made})" if isinstance(tensor, nn.Parameter) else made


def _indented(lines: list[str]) -> str:
    return "\n".join(f"    {line}" for line in lines)
