"""Configs that are wrong somewhere: check names the fault, and what it finds none in, a search takes."""

from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from nni_blockswap.experiment.classargs import read_settings
from nni_blockswap.experiment.config import Config
from nni_blockswap.searching import search
from tests.fuzz.harness import examine, limited, run_blockswap
from tests.fuzz.mutations import damage, damaged, mutated
from tests.fuzz.valid import ARGUMENTS, COMPARED, CONFIG, TAUGHT, config

TEXT = yaml.safe_dump(CONFIG).encode()


def check(content: bytes) -> None:
    path = Path("config.yml")
    path.write_bytes(content)
    if run_blockswap("check", str(path)).is_valid:
        config = Config(path)
        settings, students = read_settings(config.arguments, config.search_space(), config.code_directory)
        if settings.library is None and is_small(settings):
            with limited():
                (ranking,) = search(settings)
            assert len(ranking.top(students)) > 0


def is_small(settings: Any) -> bool:
    images = settings.samples * settings.inits * settings.minibatches * settings.batch_size
    return images * settings.train_minibatches <= 1000


def written(content: Any) -> bytes:
    return yaml.safe_dump(content).encode()


def test_configs(count):
    examine(mutated(CONFIG).map(written), check, count)


def test_class_args(count):
    arguments = st.sampled_from([ARGUMENTS, ARGUMENTS, COMPARED, TAUGHT]).flatmap(mutated)
    examine(arguments.map(config).map(written), check, count)


def test_damaged_configs(count):
    examine(damaged(len(TEXT)).map(lambda changes: damage(TEXT, changes)), check, count)
