"""One block swapped at a time: costs against closed forms, scores against a search's own, files."""

import csv

import pytest

from nni_blockswap.cli import main
from nni_blockswap.errors import SpaceError
from nni_blockswap.scoring.settings import ScoreSettings
from nni_blockswap.searching import score
from nni_blockswap.studies.sensitivity import one_swap, sensitivity

SETTINGS = ScoreSettings(
    space="search_spaces.wide_resnet:WideResNetSpace",
    data="digits",
    space_args={"depth": 10, "width": 1, "in_channels": 1, "image_size": 8},
    data_options={"image_size": 8},
    batch_size=8,
    device="cpu",
)


def test_each_swap_changes_one_block_and_costs_what_the_closed_form_says(tmp_path):
    original, by_block = sensitivity(SETTINGS, "G(4)", tmp_path)
    assert list(by_block) == ["block_00", "block_01", "block_02"]
    for label, one in by_block.items():
        assert {**original.choices, label: "G(4)"} == one.choices
    # 16 channels: S has 2 * 9 * 16^2 weights and one BN between, G(4) 2 * (9 * 16^2 / 4 + 16^2) and three
    saved = 2 * 9 * 16**2 + 2 * 16 - (2 * (9 * 16**2 // 4 + 16**2) + 3 * 2 * 16)
    assert original.params - by_block["block_00"].params == saved
    # at 8x8 with stride 1 every weight works 64 times
    assert original.macs - by_block["block_00"].macs == 64 * (2 * 9 * 16**2 - 2 * (9 * 16**2 // 4 + 16**2))
    direct = score(SETTINGS, [original.choices, by_block["block_01"].choices])
    assert [original.score, by_block["block_01"].score] == [one.value for one in direct]
    rows = list(csv.DictReader((tmp_path / "sensitivity.csv").open()))
    assert [row["block"] for row in rows] == ["block_00", "block_01", "block_02", "none"]
    assert int(rows[0]["params saved"]) == saved
    assert float(rows[3]["fisher"]) == original.score
    assert (tmp_path / "sensitivity.png").read_bytes().startswith(b"\x89PNG")


def test_blocks_that_the_substitute_does_not_fit_are_left_out():
    assert list(one_swap(SETTINGS, "BG(2,16)")) == ["block_01", "block_02"]  # block_00 has M = 8


@pytest.mark.parametrize("substitute", ["G(7)", "Q(2)"])
def test_a_substitute_that_fits_no_block_is_named(substitute):
    with pytest.raises(SpaceError, match=rf"'{substitute[0]}\({substitute[2]}\)'"):
        one_swap(SETTINGS, substitute)


def test_the_command_prints_what_it_left_out(tmp_path, capsys):
    arguments = [part for name, value in SETTINGS.space_args.items() for part in ("--space-arg", f"{name}={value}")]
    command = ["sensitivity", "--space", SETTINGS.space, *arguments, "--data", "digits", "--batch-size", "8"]
    command += ["--data-option", "image_size=8", "--substitute", "BG(2,16)", "--out", str(tmp_path)]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "BG(2,16) is no candidate of block_00." in shown
    assert "block_02" in shown
