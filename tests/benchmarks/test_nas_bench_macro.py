"""NAS-Bench-Macro's networks: their published costs, their arithmetic, and what is drawn and reported of them."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.nas_bench_macro import (
    SPACE,
    TAUGHT,
    Network,
    bands,
    check_costs,
    choose,
    correlate,
    measure,
    read,
    report,
)
from benchmarks.nas_bench_macro_space import NAMES, NasBenchMacroSpace, Nothing, TaughtMacroSpace
from nni_blockswap.architecture import Architecture
from nni_blockswap.errors import DataError, SpaceError
from nni_blockswap.scoring.proxies import make_proxy
from nni_blockswap.scoring.settings import ScoreSettings
from nni_blockswap.spaces import cost_table
from tests.scoring.test_proxies import Anything

PUBLISHED = """arch,mean_acc,std,params,flops
00000011,67.6900,0.1745,1195306,20517376
00000012,69.0533,0.3531,1623082,27312640
00000022,69.2433,0.2485,2050858,34107904
00000110,79.3467,0.4127,911274,18364928
"""
"""Four rows of the benchmark's own table."""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "table.csv").write_text(PUBLISHED)
    return tmp_path / "table.csv"


def closed_form(digits: str) -> int:
    """Parameters, counted from the description of the network."""
    total = 3 * 9 * 32 + 2 * 32 + 256 * 1280 + 2 * 1280 + 1280 * 10 + 10
    c = 32
    for position, digit in enumerate(digits):
        n = 2 * c if position in (0, 2, 5) else c
        if digit == "0":
            total += 0 if n == c else c * n + 2 * n
        else:
            e, k = {"1": (3, 3), "2": (6, 5)}[digit]
            total += c * e * c + 2 * e * c + k * k * e * c + 2 * e * c + e * c * n + 2 * n
        c = n
    return total


def test_costs_are_the_published_ones(table: Path) -> None:
    check_costs(read(table))
    for digits in ("00000000", "12121212", "22222222"):
        built = Architecture.from_choices(SPACE, [NAMES[int(digit)] for digit in digits])
        assert built.params == closed_form(digits) == sum(p.numel() for p in built.build().parameters())


def test_costs_of_all_published_networks_are_exact(data_root: Callable[[str], Path]) -> None:
    networks = read(data_root("ranking") / "nas_bench_macro_cifar10.csv")
    assert len(networks) == 1984
    check_costs(networks)


def test_a_table_that_differs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text(PUBLISHED.replace("1195306", "1195307"))
    with pytest.raises(DataError, match=r"costs \(1195306, 20517376\); the table has \(1195307"):
        check_costs(read(tmp_path / "table.csv"))
    (tmp_path / "table.csv").write_text("arch\n00000011\n")
    with pytest.raises(DataError, match="is no table with arch, mean_acc, params and flops"):
        read(tmp_path / "table.csv")


def by_hand(network: nn.Module, digits: str, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits, and what each inverted residual adds."""

    def norm(x: Tensor, layer: nn.BatchNorm2d) -> Tensor:
        return F.batch_norm(x, None, None, layer.weight, layer.bias, training=True)

    x, added = norm(network.conv(x), network.bn).relu(), []
    for digit, block in zip(digits, network.body, strict=True):
        branch = block.branch
        if digit == "0":
            x = x if isinstance(branch, Nothing) else norm(branch[0](x), branch[1])
            continue
        y = norm(branch.conv1(x), branch.bn1).relu()
        y = norm(branch.conv3(norm(branch.conv2(y), branch.bn2).relu()), branch.bn3)
        added.append(y)
        x = x + y if x.shape == y.shape else y
    features = norm(network.head(x), network.head_bn).relu().mean((2, 3))
    return network.fc(features), added


@pytest.mark.parametrize("digits", ["01020120", "21100212"])
def test_networks_are_as_described_and_only_inverted_residuals_are_probed(digits: str) -> None:
    choices = {f"block_{index:02d}": NAMES[int(digit)] for index, digit in enumerate(digits)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = NasBenchMacroSpace.build(choices).double().train()
        images, labels = torch.randn(3, 3, 32, 32, dtype=torch.float64), torch.tensor([1, 2, 3])
    logits, added = by_hand(network, digits, images)
    assert torch.allclose(network(images), logits)
    gradients = torch.autograd.grad(F.cross_entropy(logits, labels), added)
    delta = [((a * g).sum((2, 3)) ** 2).sum().item() / 6 for a, g in zip(added, gradients, strict=True)]
    found = make_proxy("fisher").measure(network.requires_grad_(False), Anything(), (images, labels)).blocks
    assert [one for one in found if one] == pytest.approx(delta)
    assert [one == 0 for one in found] == [digit == "0" for digit in digits]


def test_an_unknown_candidate_is_named() -> None:
    with pytest.raises(SpaceError, match="'MB9_K9' is not a substitute"):
        Architecture.from_choices(SPACE, ["MB9_K9"] * 8)


def networks_of(params: list[int]) -> list[Network]:
    return [Network((NAMES[index % 3],) * 8, float(index), one, 1) for index, one in enumerate(params)]


def images_in(folder: Path) -> str:
    """A class folder or two of noise."""
    rng = np.random.default_rng(0)
    for name in ("train/a", "train/b", "test/a", "test/b"):
        (folder / name).mkdir(parents=True)
        for number in range(4):
            Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / name / f"{number}.png")
    return str(folder)


def test_scores_that_were_made_before_a_kill_are_not_made_again(tmp_path: Path) -> None:
    settings = ScoreSettings(
        space=SPACE, space_args={"image_size": 16, "num_classes": 2}, data="image-folder", device="cpu", processes=1,
        data_root=images_in(tmp_path / "images"), data_options={"image_size": 16}, batch_size=4,
    )  # fmt: skip
    networks = [
        Network(tuple(NAMES[int(digit)] for digit in digits), 0.0, 0, 0)
        for digits in ("01200000", "10000001", "00000000")
    ]
    measure(settings, networks[:2], ["fisher"], tmp_path / "out")
    (journal,) = (tmp_path / "out").rglob("scores.jsonl")
    begun = journal.read_text()
    found = measure(settings, networks, ["fisher"], tmp_path / "out")
    assert journal.read_text().startswith(begun)
    assert len(journal.read_text().splitlines()) == 3
    assert found == measure(settings, networks, ["fisher"], tmp_path / "at-once")


def test_larger_samples_begin_with_smaller_ones() -> None:
    networks = networks_of([800_000 + index for index in range(50)] + [5_000_000] * 50)
    few, more = choose(networks, None, 3), choose(networks, None, 9)
    assert more[:3] == few
    assert all(790_000 < one.params < 900_000 for one in more)
    assert len(choose(networks, None, None)) == 100
    assert (
        choose(networks, (4e6, 6e6), 7) == [one for one in choose(networks, None, None) if one.params == 5_000_000][:7]
    )
    assert bands()["1.2M"] == pytest.approx((1_140_000, 1_260_000))


def test_correlations_are_with_accuracy_and_a_perfect_proxy_has_one(tmp_path: Path) -> None:
    networks = networks_of([1_200_000] * 12 + [2_000_000] * 12)
    scores = {"fisher": [one.accuracy**3 for one in networks], "naswot": [-one.accuracy for one in networks]}
    names = ["fisher", "naswot"]
    report(tmp_path, networks, scores, names, None)
    rows = {row["proxy"]: row for row in csv.DictReader((tmp_path / "correlations.csv").open())}
    assert float(rows["fisher"]["rho"]) == float(rows["fisher"]["tau"]) == 1
    assert float(rows["naswot"]["rho"]) == -1
    assert rows["fisher"]["interval"] == "+1.000 to +1.000"
    assert "1.2M (12)" in (tmp_path / "correlations.md").read_text()
    half = {"fisher": scores["fisher"], "naswot": [index % 2 for index in range(24)]}  # adds 0 or 12 places of 24
    by_hand = [index + 12 * (index % 2) for index in range(24)]
    expected = spearmanr(by_hand, range(24)).statistic
    assert correlate(networks, half, ["fisher+naswot"])[0][1] == pytest.approx(expected, abs=1e-4)
    broken = {**scores, "fisher": [float("nan"), *scores["fisher"][1:]]}
    assert correlate(networks, broken, ["fisher"])[0][1] == 1  # the worst network, and no score is the worst rank


def test_a_librarys_errors_are_low_where_a_network_is_good() -> None:
    networks = networks_of([1_200_000] * 12)
    assert correlate(networks, {"library": [-one.accuracy for one in networks]}, ["library"])[0][1] == 1


def test_the_space_with_an_original_costs_the_same_and_knows_that_mb6_k5_is_the_original() -> None:
    plain, taught = cost_table(SPACE), cost_table(TAUGHT)
    assert taught.candidates == tuple(("S", *names) for names in plain.candidates)
    for name, column in plain.columns.items():
        for block, costs in enumerate(column.costs):
            assert taught.columns[name].costs[block].tolist() == [costs[-1], *costs]
    block = next(iter(TaughtMacroSpace().blocks()))
    x = torch.randn(2, 32, 8, 8)
    assert block.site.inherit("MB6_K5", block.candidate("MB6_K5"), block.candidate("S"), x)
    assert torch.equal(block.candidate("MB6_K5")(x), block.candidate("S")(x))
    assert not block.site.inherit("MB3_K3", block.candidate("MB3_K3"), block.candidate("S"), x)
