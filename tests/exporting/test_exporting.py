"""``export``: what is written runs without this package and gives the network's outputs; the network stays as it is."""

import sys
import zipfile

import pytest
import torch
from torch import nn

from nni_blockswap import export
from nni_blockswap.errors import ConfigError, ExportError
from nni_blockswap.exporting.onnx_session import session
from search_spaces.wide_resnet import WideResNetSpace
from tests.exporting.networks import NETWORKS, Elsewhere, assert_equal_to_rounding, make

FORMS = ("pt2", "onnx", "safetensors")


@pytest.fixture(scope="module")
def elsewhere():
    """A function: format -> the process that runs it."""
    started: dict[str, Elsewhere] = {}

    def process(form: str) -> Elsewhere:
        if form not in started:
            started[form] = Elsewhere(form)
        return started[form]

    yield process
    for one in started.values():
        one.close()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NETWORKS)
def test_it_gives_the_networks_outputs_in_a_process_without_this_package(name, form, tmp_path, elsewhere):
    network, size = make(name)
    written = export(network, tmp_path / f"{name}.{form}", torch.zeros(1, *size))
    assert sorted(path.name for path in written) == sorted(path.name for path in tmp_path.iterdir())
    batches = [torch.randn(count, *size) for count in (1, 3)]
    for batch, found in zip(batches, elsewhere(form).run(written[0], batches), strict=True):
        with torch.no_grad():
            assert_equal_to_rounding(network.eval()(batch), found)


@pytest.mark.parametrize("form", FORMS)
def test_folded_bn_gives_the_same_outputs(form, tmp_path, elsewhere):
    network, size = make("resnet18")
    path = export(network, tmp_path / f"folded.{form}", torch.zeros(1, *size), fold_bn=True)[0]
    batch = torch.randn(2, *size)
    with torch.no_grad():
        expected = network.eval()(batch)
    assert_equal_to_rounding(expected, elsewhere(form).run(path, [batch])[0])


@pytest.mark.parametrize("form", FORMS)
def test_a_file_has_about_four_bytes_a_parameter(form, tmp_path):
    network, size = make("resnet18")
    path = export(network, tmp_path / f"student.{form}", torch.zeros(64, *size))[0]
    assert 3.99 < path.stat().st_size / sum(one.numel() for one in network.parameters()) < 4.02


@pytest.mark.parametrize("form", ["pt2", "onnx"])
def test_a_file_holds_neither_source_lines_nor_paths_of_the_machine_that_wrote_it(form, tmp_path):
    network, size = make("wide_resnet")
    path = export(network, tmp_path / f"student.{form}", torch.zeros(1, *size))[0]
    if form == "onnx":
        content = path.read_bytes()
    else:
        with zipfile.ZipFile(path) as archive:
            content = b"".join(archive.read(name) for name in archive.namelist())
            assert not [
                name for name in archive.namelist() if archive.getinfo(name).file_size > 8000 and "input" in name
            ]
    assert b"stage3" in content
    assert b".py" not in content
    assert b"in forward" not in content


@pytest.mark.parametrize("form", FORMS)
def test_the_users_network_stays_as_it_is(form, tmp_path):
    network, size = make("wide_resnet")
    network.conv.weight.requires_grad_(False)
    network.stage1.eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    modules = {name: (module, module.training) for name, module in network.named_modules()}
    export(network, tmp_path / f"student.{form}", torch.zeros(1, *size), fold_bn=True)
    after = network.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert {name: (module, module.training) for name, module in network.named_modules()} == modules
    assert not network.conv.weight.requires_grad
    assert network.fc.weight.requires_grad


class OneBatch(nn.Module):
    """Its batch size stands in its code."""

    def forward(self, x):
        return x.reshape(4, -1).sum(1)


def test_a_batch_size_that_is_not_free_is_said_and_can_be_kept(tmp_path, elsewhere):
    images = torch.randn(4, 3, 2, 2)
    with pytest.raises(ExportError, match=r"output of shape \(4,\) for 2 images .* dynamic_batch=False"):
        export(OneBatch(), tmp_path / "net.pt2", images)
    export(OneBatch(), tmp_path / "net.pt2", images, dynamic_batch=False)
    found = elsewhere("pt2").run(tmp_path / "net.pt2", [images])[0]
    torch.testing.assert_close(found, images.flatten(1).sum(1))


class Detector(nn.Module):
    def forward(self, images):
        return [{"boxes": torch.zeros(0, 4)} for _ in images]


def diverged():
    network = nn.Conv2d(3, 4, 3)
    nn.init.constant_(network.bias, float("nan"))
    return network


def uncopied():
    network = nn.Conv2d(3, 4, 3)
    network.seen = (number for number in range(3))
    return network


def undecided():
    return WideResNetSpace(depth=10, width=1, image_size=8)


IMAGES = torch.zeros(1, 3, 8, 8)


@pytest.mark.parametrize(
    ("network", "name", "example", "sentence"),
    [
        (nn.Conv2d(3, 4, 3), "net.pth", IMAGES, r"ends in \.pt2, \.onnx, \.safetensors, not to '.*net\.pth'"),
        (nn.Conv2d(3, 4, 3), "net", IMAGES, "ends in"),
        (nn.Conv2d(3, 4, 3), "net.pt2", torch.zeros(1, 1, 8, 8), r"cannot take .* shape \(2, 1, 8, 8\)"),
        (nn.Conv2d(3, 4, 3), "net.pt2", torch.zeros(3), "cannot take an example input of shape"),
        (nn.Conv2d(3, 4, 3), "net.pt2", [torch.zeros(3, 8, 8)], "not a list; a detector, which takes its images as"),
        (Detector(), "net.pt2", IMAGES, "a detector, which takes its images as a list, is not exported"),
        (undecided(), "net.pt2", IMAGES, r"a search space, whose choices are open, is no network yet"),
        (diverged(), "net.pt2", IMAGES, "'bias' holds values that are not finite"),
        (uncopied(), "net.pt2", IMAGES, "the network cannot be copied: cannot pickle 'generator' object"),
        ("resnet18", "net.pt2", IMAGES, r"a torch\.nn\.Module is exported, not a str"),
        (nn.Conv2d(3, 4, 3), "my-net.safetensors", IMAGES, "'my-net' is no name in Python"),
    ],
)
def test_one_sentence_for_what_cannot_be_exported(network, name, example, sentence, tmp_path):
    with pytest.raises((ConfigError, ExportError), match=sentence) as refused:
        export(network, tmp_path / name, example)
    assert len(str(refused.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda network: torch.compile(network, backend="eager")])
def test_a_network_is_taken_out_of_its_wrapper(wrap, tmp_path):
    network, images = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8)
    (path,) = export(wrap(network), tmp_path / "net.pt2", images)
    program = torch.export.load(path)
    torch.testing.assert_close(program.module()(images), network(images))
    assert list(program.state_dict) == ["weight", "bias"]


def test_a_mask_may_be_infinite_and_a_statistic_may_not(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    network[0].register_buffer("mask", torch.tensor(-torch.inf))
    export(network, tmp_path / "net.pt2", IMAGES)
    network[1].running_var[0] = torch.inf
    with pytest.raises(ExportError, match=r"'1\.running_var' holds values that are not finite"):
        export(network, tmp_path / "net.pt2", IMAGES)


def test_onnx_names_the_packages_that_it_needs(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"torch\.onnx needs the packages onnx and onnxscript"):
        export(nn.Conv2d(3, 4, 3), tmp_path / "net.onnx", IMAGES)


def test_a_graph_that_does_otherwise_than_the_network_is_not_written(tmp_path):
    network = nn.AvgPool2d(2, divisor_override=3)  # which torch.onnx passes over in silence
    with pytest.raises(ExportError, match=r"in ONNX Runtime the network gives other outputs .*; export to \.pt2\.$"):
        export(network, tmp_path / "net.onnx", IMAGES)
    assert not list(tmp_path.iterdir())


class InPlace(nn.Module):
    """Changes the images that it is given."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(self.conv(x.sub_(0.5).mul_(3)))


@pytest.mark.parametrize("form", FORMS)
def test_a_network_may_change_its_images_in_place(form, tmp_path, elsewhere):
    network, images = InPlace().eval(), torch.randn(2, 3, 8, 8)
    path = export(network, tmp_path / f"net.{form}", images, fold_bn=True)[0]
    (found,) = elsewhere(form).run(path, [images])
    with torch.no_grad():
        assert_equal_to_rounding(network(images.clone()), found)


class Counting(nn.Module):
    """Gives other outputs in each pass, as it counts them."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x):
        self.passes.add_(1)
        return self.conv(x) * self.passes


def test_a_program_begins_with_the_networks_own_buffers(tmp_path):
    network = Counting().eval()
    (path,) = export(network, tmp_path / "net.pt2", IMAGES)
    program = torch.export.load(path)
    assert program.state_dict["passes"].item() == network.passes.item() == 0
    with torch.no_grad():
        assert_equal_to_rounding(network.conv(IMAGES), program.module()(IMAGES))


class Noisy(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x, 0.5, training=True)


@pytest.mark.parametrize("form", ["pt2", "onnx"])
def test_a_network_that_draws_in_eval_mode_is_written_unseen(form, tmp_path):
    assert export(nn.Sequential(nn.Conv2d(3, 4, 3), Noisy()), tmp_path / f"net.{form}", IMAGES)[0].exists()


def test_a_program_that_torch_cannot_run_is_not_written(tmp_path):
    network = nn.Sequential()
    network.add_module("class", nn.Conv2d(3, 4, 3))  # whose name becomes a variable of the program
    with pytest.raises(ExportError, match=r"torch cannot run what torch\.export made .*: invalid syntax"):
        export(network, tmp_path / "net.pt2", IMAGES)
    assert not list(tmp_path.iterdir())


def test_an_operation_that_onnx_lacks_is_named(tmp_path):
    with pytest.raises(ExportError, match=r"cannot write the network: No ONNX function .*adaptive_max_pool2d"):
        export(nn.AdaptiveMaxPool2d((3, 5)), tmp_path / "net.onnx", IMAGES)


@pytest.mark.parametrize("form", ["pt2", "safetensors"])
def test_a_write_that_fails_leaves_the_older_file(form, tmp_path, monkeypatch):
    path = tmp_path / f"net.{form}"
    path.write_text("older")

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("nni_blockswap.files.os.replace", full)
    with pytest.raises(OSError, match="no space"):
        export(nn.Conv2d(3, 4, 3), path, IMAGES)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "older"


def test_a_session_of_onnx_runtime_gives_the_networks_outputs():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    network(torch.randn(16, 3, 8, 8))  # statistics that are not those of a new BN
    images = torch.randn(2, 3, 6, 6)
    run = session(network, images, threads=1)
    with torch.no_grad():
        (found,) = run()
        assert_equal_to_rounding(network.eval()(images), torch.from_numpy(found))
