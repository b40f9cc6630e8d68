"""The trial's one tie to NNI; nothing else here imports it. Outside NNI the same calls do nothing."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from nni_blockswap.experiment.signature import is_signed
from nni_blockswap.files import read_json, write_json
from nni_blockswap.results.trial import GIVEN, WORD

Metrics = Mapping[str, float | int | str]
"""What is reported: ``default`` is what NNI optimises, its web page draws the other numbers beside it."""


class NNILink:
    """A trial's conversation with NNI.

    In time: NNI's parameters are asked for once, on construction (a second request in a process waits for ever); then
    comes one intermediate report an epoch and one final report.

    Attributes:
        parameters: what NNI gave.
        signed: whether the experiment's tuner has signed them.
        output: the trial's folder.

    Raises:
        StateError: the tuner signs, and did not sign these.
    """

    def __init__(self) -> None:
        import nni  # it takes over sys.stdout, so not before it is needed
        import nni.trial

        self._trial = nni.trial
        self.output = Path(os.environ["NNI_OUTPUT_DIR"])
        handed_out = dict(nni.get_next_parameter() or {})  # asked for in any case: no report comes before that
        self.parameters: dict[str, Any] = self._earlier() or handed_out
        self.signed = is_signed(self.parameters, self.output.absolute())
        (self.output / WORD).unlink(missing_ok=True)  # of an earlier process
        write_json(self.output / GIVEN, self.parameters)

    def _earlier(self) -> dict[str, Any]:
        """What this trial was given before it was stopped; empty where it is new.

        NNI may have recorded a trial with the parameters of one beside it, and hands it those when it is resumed
        (microsoft/nni issues 5693 and 5726).
        """
        with suppress(OSError, ValueError):
            return dict(read_json(self.output / GIVEN))
        return {}

    def report_epoch(self, epoch: int, metrics: Metrics) -> None:
        """Report the metrics of ``epoch``, counted from 0; a resumed trial goes on in its old curve."""
        self._trial.overwrite_intermediate_seq(epoch)
        self._trial.report_intermediate_result(dict(metrics))

    def report_final(self, metrics: Metrics) -> None:
        """Report the trial's result."""
        self._trial.report_final_result(dict(metrics))


def leave_word(sentence: str, *, final: bool) -> None:
    """Tell the tuner why this trial ends without a result; it takes one that leaves no word for one that was killed.

    Args:
        final: whether nobody can train this student; else it may be tried again after ``nnictl resume``.
    """
    if under_nni() and is_first_process():
        with suppress(OSError):  # a full disk; then it is the disk's fault
            write_json(Path(os.environ["NNI_OUTPUT_DIR"]) / WORD, {"final": final, "sentence": sentence})


def under_nni() -> bool:
    """Whether NNI started this process."""
    return "NNI_PLATFORM" in os.environ


def is_first_process() -> bool:
    """Whether this is the process that a person or NNI started, not one that Lightning started for a further GPU."""
    return os.environ.get("LOCAL_RANK", "0") == "0"
