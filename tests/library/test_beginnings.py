"""What candidates begin with where the original is none of the usual ones."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nni_blockswap import Architecture, build_library, swap_blocks
from nni_blockswap.blocks.network import NetworkSpace
from nni_blockswap.errors import StateError
from nni_blockswap.library import store
from nni_blockswap.library.assembling import furnish
from nni_blockswap.library.bench import Bench
from nni_blockswap.library.building import STARTS
from nni_blockswap.library.library import Library, read_about, write_about
from nni_blockswap.spaces import NETWORK, named_arguments
from tests.blocks.networks import Sum, conv
from tests.cost.test_table import count_macs, count_params
from tests.library.conftest import settings


class Gate(nn.Module):
    """Squeeze-and-excitation: its convolutions are dense ones, too."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


def test_where_nothing_is_taken_over_statistics_are_those_of_what_enters(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Sum(conv(), nn.BatchNorm2d(8), nn.ReLU(), Gate(8), conv())
    (block,) = swap_blocks(network, torch.zeros(1, 3, 8, 8)).blocks()
    block.select("S")
    bench = Bench(block, settings(tmp_path / "teacher.pt"), tmp_path, torch.device("cpu"))
    bench.open()
    entered = 3 + 2 * torch.randn(8, 8, 8, 8)
    bench.inherit(entered, entered)
    assert bench.candidates.keys() >= {"G(2)", "B(2)", "BG(2,2)"}
    for candidate in bench.candidates.values():
        x = candidate.get_submodule("conv1")(entered)
        norm = candidate.get_submodule("bn1")
        torch.testing.assert_close(norm.running_mean, x.mean((0, 2, 3)))
        torch.testing.assert_close(norm.running_var, x.var((0, 2, 3)))


EXAMPLE = torch.zeros(1, 3, 8, 8)
IMAGES = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def residual(inside: int) -> nn.Module:
    """A network whose one residual branch has 8 channels at its ends and ``inside`` between its convolutions."""
    torch.manual_seed(0)
    branch = (conv(8, inside), nn.BatchNorm2d(inside), nn.ReLU(), conv(inside, 8))
    return nn.Sequential(Sum(*branch), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()


def taught(space: NetworkSpace, folder: Path, steps: int = 1) -> dict[str, float]:
    """Errors of the candidates after so many steps."""
    loader = DataLoader(TensorDataset(IMAGES, torch.arange(32) % 3), batch_size=8)
    library = build_library(space, loader, out=folder, steps=steps, lr=1e-4, batch_size=8, held_out=8, device="cpu",
                            on_progress=lambda progress: None)  # fmt: skip
    return {name: error.value for name, error in library.errors["block_00"].items()}


@pytest.mark.parametrize("inside", [2, 32])
def test_a_branch_of_another_width_inside(inside: int, tmp_path: Path) -> None:
    """A library of it can be built, and costs are those of the built network and of the closed form."""
    space = swap_blocks(residual(inside), EXAMPLE, extra=["W(1/2)"])
    errors = taught(space, tmp_path)
    assert errors["S"] == 0
    assert all(0 < error < 1.1 for name, error in errors.items() if name != "S")  # a constant would have 1
    arguments = named_arguments(NetworkSpace, *space.trace_args, **space.trace_kwargs)
    pairs = [9 * 8 * 8 // 2, 8 * inside, 9 * inside * inside // 2, 8 * inside]
    weights = {"S": 9 * 2 * 8 * inside, "G(2)": sum(pairs), "B(4)": 2 * 8 * 2 + 9 * 2 * 2, "W(1/2)": 9 * 8 * inside}
    for name in errors.keys() & weights.keys():
        one = Architecture.from_choices(NETWORK, [name], arguments)
        built = one.build()
        assert (one.params, one.macs) == (count_params(built), count_macs(built, EXAMPLE))
        assert one.macs == 64 * (9 * 3 * 8 + weights[name]) + 8 * 3  # between stem and head


def test_a_narrowed_student_is_swapped_and_taught_again(tmp_path: Path) -> None:
    space = swap_blocks(residual(32), EXAMPLE, extra=["W(1/2)"])
    arguments = named_arguments(NetworkSpace, *space.trace_args, **space.trace_kwargs)
    student = Architecture.from_choices(NETWORK, ["W(1/2)"], arguments).build().eval()
    again = swap_blocks(student, EXAMPLE, extra=["W(1/2)"])
    (block,) = again.blocks()
    assert block.site.middle_channels == 16
    assert block.candidate("W(1/2)").get_parameter("conv2.weight").shape == (8, 8, 3, 3)
    assert 0 < taught(again, tmp_path)["W(1/2)"] < 1


def test_a_library_has_mobile_bottlenecks_whose_beginning_runs_the_original(tmp_path: Path) -> None:
    space = swap_blocks(residual(16), EXAMPLE, extra=["MB(2)", "MB(20)"])
    errors = taught(space, tmp_path)
    assert all(0 < errors[name] < 1.1 for name in ("MB(2)", "MB(20)"))


@pytest.mark.parametrize("extra", ["W(1/2)", "MB(2)"])
def test_what_began_otherwise_before_is_not_taught_on(extra: str, tmp_path: Path) -> None:
    space = swap_blocks(residual(16), EXAMPLE, extra=[extra])
    taught(space, tmp_path)
    about = read_about(tmp_path)
    assert about is not None
    write_about(tmp_path, {**about, "starts": STARTS})
    assert extra in Library.load(tmp_path).errors["block_00"]
    with pytest.raises(StateError, match="holds another library"):
        taught(space, tmp_path)


def test_what_was_taught_as_another_module_is_told(tmp_path: Path) -> None:
    space = swap_blocks(residual(16), EXAMPLE, extra=["W(1/2)"])
    taught(space, tmp_path)
    tensors, said = store.read(tmp_path / "block_00.safetensors")
    tensors["W(1/2) norm.weight"] = tensors.pop("W(1/2) bn1.weight")
    del said["digest"]
    store.write(tmp_path / "block_00.safetensors", tensors, said)
    arguments = named_arguments(NetworkSpace, *space.trace_args, **space.trace_kwargs)
    one, library = Architecture.from_choices(NETWORK, ["W(1/2)"], arguments), Library.load(tmp_path)
    with pytest.raises(StateError, match=r"^W\(1/2\) of block_00 was taught as another module"):
        furnish(one.build(), one, one.teacher().build().state_dict(), library)
    with pytest.raises(StateError, match=r"^W\(1/2\) of block_00 was taught as another module"):
        taught(space, tmp_path, steps=2)
