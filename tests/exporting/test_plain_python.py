"""The generated Python file: what is in it for networks of every build, and what is refused."""

import ast
import importlib.util
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torchvision.ops import StochasticDepth

from nni_blockswap.errors import ConfigError, ExportError
from nni_blockswap.exporting import export
from tests.exporting.networks import NETWORKS, make

IMAGES = torch.randn(2, 3, 8, 8)


def written(network, folder, images=IMAGES):
    """The text of the file that is written for ``network``, and the module that it is."""
    path = export(network, folder / "student.safetensors", images)[1]
    specification = importlib.util.spec_from_file_location("student", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return path.read_text(), module


def assert_same_outputs(network, module, images):
    with torch.no_grad():
        ours, theirs = network.eval()(images), module.load()(images)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)


class Residual(nn.Module):
    def __init__(self, width, scale=1.0):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.scale = scale

    def forward(self, x):
        return self.relu(x + self.scale * self.bn(self.conv(x)))


def test_the_file_reads_like_the_network(tmp_path):
    stem = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, (3, 1), stride=2, padding=(1, 0)), act=nn.LeakyReLU(0.2)))
    network = nn.Sequential(stem, Residual(4), Residual(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    text = written(network, tmp_path)[0]
    assert (
        text.partition('"""\n\n')[2]
        == '''\
from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn


class Residual(nn.Module):
    def __init__(self, conv, bn, relu):
        super().__init__()
        self.conv = conv
        self.bn = bn
        self.relu = relu

    def forward(self, x):
        conv = self.conv(x)
        bn = self.bn(conv)
        mul = 1.0 * bn
        add = x + mul
        return self.relu(add)


def build():
    """The network, with fresh weights."""
    return nn.Sequential(
        nn.Sequential(OrderedDict({
            "conv": nn.Conv2d(3, 4, (3, 1), stride=2, padding=(1, 0)),
            "act": nn.LeakyReLU(negative_slope=0.2),
        })),
        Residual(
            conv=nn.Conv2d(4, 4, 3, padding=1, bias=False),
            bn=nn.BatchNorm2d(4),
            relu=nn.ReLU(),
        ),
        Residual(
            conv=nn.Conv2d(4, 4, 3, padding=1, bias=False),
            bn=nn.BatchNorm2d(4),
            relu=nn.ReLU(),
        ),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )


def load(path=Path(__file__).with_suffix(".safetensors")):
    """The network with its trained weights, ready for inference."""
    from safetensors.torch import load_file

    with torch.device("meta"):  # the weights come from the file
        network = build()
    network.load_state_dict(load_file(path), assign=True)
    return network.eval()
'''
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_the_file_imports_torch_and_pythons_own_alone_and_builds_the_same_state(name, tmp_path):
    network, size = make(name)
    text, module = written(network, tmp_path, torch.zeros(1, *size))
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            imported |= {name.split(".")[0] for name in names}
    assert imported <= {"torch", "safetensors", "collections", "pathlib", "math", "operator"}
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    assert {name: tensor.shape for name, tensor in module.build().state_dict().items()} == shapes
    loaded = module.load().state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in network.state_dict().items())


def test_blocks_that_differ_in_arguments_share_a_class_and_those_that_differ_in_code_do_not(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), Residual(4), nn.Conv2d(4, 6, 1), Residual(6), Residual(6, scale=0.5))
    text, module = written(network, tmp_path)
    assert [line for line in text.splitlines() if line.startswith("class ")] == [
        "class Residual(nn.Module):",
        "class Residual2(nn.Module):",
    ]
    assert_same_outputs(network, module, IMAGES)


class Shared(nn.Module):
    """A convolution that is called twice, one that has two names, and a ReLU that stands at two places."""

    def __init__(self):
        super().__init__()
        self.twice = nn.Conv2d(3, 3, 3, padding=1)
        self.first = nn.Conv2d(3, 3, 1)
        self.second = self.first
        relu = nn.ReLU()
        self.tail = nn.Sequential(nn.Conv2d(3, 2, 1), relu, nn.Conv2d(2, 2, 1), relu)

    def forward(self, x):
        return self.tail(self.second(self.first(self.twice(self.twice(x)))))


class Tensors(nn.Module):
    """Tensors of every kind that a forward pass may use, and functions in place of modules."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(3, 1, 1))
        self.register_buffer("mean", torch.rand(3, 1, 1), persistent=False)
        self.plain = torch.rand(3, 1, 1)
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x, factor=2.0, mask=None):
        if mask is not None:
            x = x * mask
        x = (x - self.mean) * self.scale + self.plain - torch.tensor([0.5, 0.25, 0.125]).view(3, 1, 1)
        x = F.conv2d(x, self.conv.weight, self.conv.bias, padding=1) * factor
        pooled = F.max_pool2d(F.hardswish(x[:, 1:]), kernel_size=2)
        height, width = pooled.shape[-2:]
        weighted = pooled * (float("inf") if factor > 3 else 1.5) / (height * width)
        return weighted.reshape(x.size(0), -1).clamp(max=5)


class Structures(nn.Module):
    """Modules that take lists and give mappings and tuples; lists and dictionaries of modules; an unused head."""

    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleList([nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 3)])
        self.heads = nn.ModuleDict({"main": Halves(), "auxiliary": nn.Linear(100, 100)})
        self.join = Join()

    def forward(self, x):
        halves = self.heads["main"](x)
        joined = self.join([self.branches[0](x), self.branches[1](halves["whole"])], x=halves["parts"][0])
        return OrderedDict(out=joined, sizes=(halves["parts"][1], [x]))


class Halves(nn.Module):
    def forward(self, x):
        left, right = x.chunk(2, dim=-1)
        return {"whole": torch.cat([right, left], dim=-1), "parts": (left, right)}


class Join(nn.Module):
    def forward(self, parts, x):
        return torch.cat(parts, dim=1).sum((1, 2, 3)) + x.mean()


class Pooling(nn.Sequential):
    """A Sequential with a forward pass of its own."""

    def forward(self, x):
        size = x.shape[-2:]
        for module in self:
            x = module(x)
        return F.interpolate(x, size=size, mode="bilinear")


class Wrapped(nn.Module):
    """In eval mode neither dropout nor stochastic depth does anything; the latter's function is torchvision's."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.drop = StochasticDepth(0.5, "row")
        self.path = nn.Sequential(StochasticDepth(0.5, "row"), nn.Identity(), nn.Conv2d(3, 3, 1))

    def forward(self, x):
        return x + self.drop(self.path(F.dropout(self.conv(x), 0.5, self.training)))


class Keeps(nn.Module):
    """Hands a value to a module below it, which does not get it as an argument."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.reader = Reads(self)

    def forward(self, x):
        self.kept = self.conv(x)
        return self.reader(x)


class Reads(nn.Module):
    def __init__(self, keeper):
        super().__init__()
        self.keeper = [keeper]

    def forward(self, x):
        return x + self.keeper[0].kept


class Hands(nn.Module):
    """The first of a Sequential hands its result to a later one; between them is computed what nobody wants."""

    def __init__(self):
        super().__init__()
        taker = Takes()
        between = nn.ReLU(inplace=True), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.chain = nn.Sequential(Gives(taker), *between, taker, nn.Conv2d(3, 3, 1))
        self.gives, self.takes = Gives(taker), taker

    def forward(self, x):
        x = F.relu(self.gives(self.chain(x)), inplace=True)
        return self.takes(x) + 1


class Gives(nn.Module):
    def __init__(self, taker):
        super().__init__()
        self.inner = nn.Conv2d(3, 3, 1)
        self.taker = [taker]

    def forward(self, x):
        self.taker[0].kept = self.inner(x)
        return torch.empty_like(self.taker[0].kept[:0])


class Takes(nn.Module):
    def forward(self, x):
        return self.kept


def rewritten():
    return fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(Residual(4), nn.Conv2d(4, 2, 1))))


@pytest.mark.parametrize("build", [Shared, Tensors, Structures, Wrapped, Keeps, Hands, rewritten])
def test_networks_of_every_build_give_the_same_outputs(build, tmp_path):
    torch.manual_seed(0)
    network = build()
    assert_same_outputs(network, written(network, tmp_path)[1], torch.randn(3, 3, 8, 8))


def test_a_sequential_with_a_forward_pass_of_its_own_takes_images_of_any_size(tmp_path):
    network = Pooling(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 4, 1))
    assert_same_outputs(network, written(network, tmp_path)[1], torch.randn(1, 3, 5, 9))


def test_what_the_forward_pass_does_not_use_is_left_out(tmp_path):
    names = written(Structures(), tmp_path)[1].build().state_dict().keys()
    assert names == {f"branches.{number}.{kind}" for number in (0, 1) for kind in ("weight", "bias")}


def test_what_nobody_uses_is_not_computed(tmp_path):
    text = written(Hands(), tmp_path)[0]
    assert "empty_like" not in text
    assert "relu" not in text.lower()
    assert "BatchNorm" not in text


def test_somebodys_own_code_is_not_overwritten(tmp_path):
    own = tmp_path / "student.py"
    own.write_text("# my own\n")
    with pytest.raises(ConfigError, match=r"student.py' would be overwritten, and no export has written it"):
        written(nn.Conv2d(3, 4, 3), tmp_path)
    assert own.read_text() == "# my own\n"
    assert [one.name for one in tmp_path.iterdir()] == ["student.py"]
    own.unlink()
    for width in (4, 5):  # its own it writes anew
        assert f"nn.Conv2d(3, {width}, 3)" in written(nn.Conv2d(3, width, 3), tmp_path)[0]


def test_weights_keep_their_precision(tmp_path):
    network = nn.Conv2d(3, 4, 1).to(torch.bfloat16)
    module = written(network, tmp_path, IMAGES.to(torch.bfloat16))[1]
    assert module.load().weight.dtype == torch.bfloat16
    assert torch.equal(module.load().weight, network.weight)


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def hooked():
    network = nn.Sequential(nn.Conv2d(3, 4, 1))
    network[0].register_forward_hook(lambda module, inputs, output: output * 2)
    return network


class TwoWays(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Twofold()

    def forward(self, x):
        return self.inner(self.inner(x, double=True))


class Twofold(nn.Module):
    def forward(self, x, double=False):
        return x * 2 if double else x + 1


class Signed(nn.Module):
    """Its hook changes nothing where images are zero."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1, bias=False)
        self.conv.register_forward_hook(lambda module, inputs, output: -output)

    def forward(self, x):
        return self.conv(x)


def test_the_comparison_does_not_rest_on_the_examples_values(tmp_path):
    with pytest.raises(ExportError, match="gives other outputs than the network"):
        export(Signed(), tmp_path / "student.safetensors", torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: nn.Sequential(Branching()), "inputs to control flow .in the forward pass of a Branching."),
        (hooked, "gives other outputs than the network"),
        (TwoWays, "a Twofold is called more than once and does not do the same each time"),
    ],
)
def test_what_cannot_be_written_is_refused_with_the_reason(build, reason, tmp_path):
    with pytest.raises(ExportError, match=reason):
        export(build(), tmp_path / "student.safetensors", IMAGES)
    assert not list(tmp_path.iterdir())


def test_a_refusal_names_the_format_that_follows_more(tmp_path):
    with pytest.raises(ExportError, match=r"cannot be written as plain Python: .*; export it to \.pt2"):
        export(Branching(), tmp_path / "student.safetensors", IMAGES)
