"""The nnictl config of an experiment, as far as it concerns this package."""

import shlex
from pathlib import Path
from typing import Any

from nni_blockswap.errors import ConfigError, shown
from nni_blockswap.experiment.yaml_file import read_yaml
from nni_blockswap.files import expanded
from nni_blockswap.metric import Metric
from nni_blockswap.trust import IMPORTED, packages_in


class Config:
    """An nnictl config: its content, its tuner's arguments, and what its paths are relative to."""

    def __init__(self, path: Path) -> None:
        self.content = read_yaml(path)
        if not isinstance(self.content, dict):
            raise ConfigError(f"the config '{path}' maps fields to values, as in 'trialConcurrency: 1'.")
        self.path = path
        tuner = self.content.get("tuner")
        self.tuner: dict[str, Any] = tuner if isinstance(tuner, dict) else {}
        arguments = self.tuner.get("classArgs")
        self.arguments: dict[str, Any] = arguments if isinstance(arguments, dict) else {}

    def resolve(self, path: Any) -> Path:
        """A path of the config, relative to the config's folder."""
        return (self.path.parent / expanded(str(path))).resolve()

    @property
    def code_directory(self) -> Path:
        """Where the tuner and the space are imported from."""
        return self.resolve(self.tuner.get("codeDirectory", "."))

    @property
    def trial_directory(self) -> Path:
        """Where the trial's command runs."""
        return self.resolve(self.content.get("trialCodeDirectory", "."))

    @property
    def trial_command(self) -> list[str]:
        """Its words. Raises ConfigError where there is none."""
        found = words_of(self.content.get("trialCommand"), f"the trialCommand of '{self.path}'")
        if not found:
            raise ConfigError(f"the trialCommand of '{self.path}' is empty; as in 'python -m trial.distill'.")
        return found

    @property
    def service(self) -> dict[str, Any]:
        """The training service."""
        service = self.content.get("trainingService")
        return service if isinstance(service, dict) else {}

    @property
    def platform(self) -> str:
        """Where trials run: ``local``, ``remote`` or another of NNI's."""
        return str(self.service.get("platform", "local"))

    @property
    def metric(self) -> Metric:
        """What its trials are judged by, as far as its data set says."""
        from nni_blockswap.tasks import metric_of

        return metric_of(str(self.arguments.get("data")))

    @property
    def packages(self) -> list[str]:
        """The user's own that the tuner's arguments name: what this experiment leaves on disk may name them, too."""
        return [package for package in packages_in(self.arguments) if package not in IMPORTED]

    def search_space(self) -> Any:
        """The candidates, in NNI's format. Raises SpaceError where their file cannot be read."""
        from nni_blockswap.blocks.nni_format import read_candidates

        if "searchSpaceFile" in self.content:
            names = read_candidates(self.resolve(self.content["searchSpaceFile"]))
            return {label: {"_type": "choice", "_value": values} for label, values in names.items()}
        return self.content.get("searchSpace")


def words_of(command: object, what: str) -> list[str]:
    """The words of a command line. Raises ConfigError where it is no text, or a quote in it is not closed."""
    if not isinstance(command, str):
        raise ConfigError(f"{what} is text, not {shown(command)}.")
    try:
        return shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"{what} is no command line ({error}): {shown(command)}.") from error
