"""A trial takes what its tuner signed, as NNI's manager hands it on, and nothing else."""

import json
import stat

import pytest

from nni_blockswap.errors import StateError
from nni_blockswap.experiment.signature import is_signed, secret_of, signed

GIVEN = {"block_00": "G(N/8)", "space_args": {"width": 1.0, "extra": []}, "macs": 3_600_000_000, "score": 2.0,
         "rank": None, "deep": True}  # fmt: skip


@pytest.fixture
def trial(tmp_path):
    folder = tmp_path / "environments" / "local-env" / "trials" / "Ab1"
    folder.mkdir(parents=True)
    return folder


def test_what_the_tuner_signed_is_taken_however_its_numbers_are_written(tmp_path, trial):
    secret = secret_of(tmp_path / "checkpoint")
    given = json.loads(json.dumps(signed(GIVEN, secret)).replace("1.0", "1").replace("2.0", "2"))
    assert (given["score"], type(given["score"])) == (2, int)
    assert is_signed(given, trial)
    assert secret_of(tmp_path / "checkpoint") == secret
    assert stat.S_IMODE((tmp_path / "checkpoint" / "secret").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "change", [{"space": "os:system"}, {"block_00": "S"}, {"signature": "0" * 64}, {"signature": 3}]
)
def test_what_was_changed_or_posted_by_another_is_refused(tmp_path, trial, change):
    given = {**signed(GIVEN, secret_of(tmp_path / "checkpoint")), **change}
    with pytest.raises(StateError, match="not as the experiment's tuner signed them"):
        is_signed(given, trial)
    with pytest.raises(StateError, match="not as the experiment's tuner signed them"):
        is_signed(GIVEN, trial)


def test_a_tuner_of_nnis_own_signs_nothing(trial):
    assert not is_signed({"block_00": "S"}, trial)
