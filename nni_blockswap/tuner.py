"""BlockSwapTuner: the search behind ``nnictl create``, each selected student a trial."""

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from nni import NoMoreTrialError
from nni.tuner import Tuner

from nni_blockswap.errors import BlockSwapError, BudgetError
from nni_blockswap.experiment.dispatcher import (
    code_directory,
    manager_port,
    max_trials,
    release_gpu,
    restore_gpus,
    share_cores,
    tell,
)
from nni_blockswap.experiment.fetching import Fetcher, fetch
from nni_blockswap.experiment.layout import ERROR, PLANNED, PROGRESS, SEARCH, STUDENTS
from nni_blockswap.experiment.recovery import Words, allow_for, held
from nni_blockswap.experiment.service import Experiment
from nni_blockswap.experiment.signature import secret_of, signed
from nni_blockswap.experiment.students import Students, identity, result_of
from nni_blockswap.files import read_json, write_json, write_text

if TYPE_CHECKING:  # torch is imported when the search begins: NNI gives a tuner ten seconds to connect
    from nni_blockswap.conversation import Progress
    from nni_blockswap.library.school import Progress as Steps
    from nni_blockswap.searching import SearchSettings

_log = logging.getLogger(__name__)


class BlockSwapTuner(Tuner):  # type: ignore[misc]  # NNI is not typed
    """Searches once, then hands out the best students, one a trial, best first.

    In time: NNI constructs the tuner, which has to take less than ten seconds; gives it the search space; and asks for
    parameters, upon which the search runs. Results and ends of trials follow. After a resume, results of earlier trials
    come as imported data, then NNI asks for parameters again. What is found is written to the experiment's checkpoint
    folder as it comes: a killed search goes on where it was, and no student is trained twice.

    A fault of any kind ends the experiment with status ERROR and one sentence: on the terminal of whoever typed
    ``nnictl create``, in the checkpoint folder's error.txt, and in dispatcher.log, which the web page shows.

    Args:
        settings: the fields of ``nni_blockswap.searching.SearchSettings``, with one ``budget`` for ``budgets``; and
            ``students``, how many of the best to hand out (default 3; maxTrialNumber should be the same). A relative
            ``data_root`` is below the tuner's codeDirectory. ``candidates`` are those of the experiment's search space.
            ``library`` is a folder, or a mapping: one that is built first, see ``training.schooling``; its folder and a
            teacher's path are below codeDirectory, too.
            With ``comparison``, the fields of ``studies.comparison.Comparison``, its contestants are handed out.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self._settings = settings
        self._search_space: Any = {}
        self._chosen: Students | None = None
        self._handed_out: dict[int, str] = {}
        self._words = Words(self._experiment())
        self._fetcher: Fetcher | None = None
        self._dispatcher: Any = None

    def update_search_space(self, search_space: Any) -> None:
        """Take the search space: the substitutes to try by block, in NNI's format. Without effect after the search."""
        self._search_space = search_space

    def generate_parameters(self, parameter_id: int, **kwargs: Any) -> dict[str, Any]:
        """The best student that has no trial yet; the first call searches.

        Raises:
            NoMoreTrialError: all have one, or the search failed.
        """
        self._dispatcher = getattr(kwargs.get("st_callback"), "__self__", None)
        try:
            if self._chosen is None:
                self._chosen = self._earlier_students() or self._search()
            if os.environ.get("NNI_MODE") == "resume":
                self._make_up_for_lost_trials(self._chosen)
            parameters = self._chosen.next(self._rerun())
        except StoppedError:
            raise
        except BlockSwapError as error:
            self._give_up(str(error))
        except Exception as error:  # anything else would leave the experiment RUNNING for ever
            _log.exception("The search failed.")
            self._give_up(f"the search failed unexpectedly, {type(error).__name__}: {error}; see dispatcher.log.")
        self._fetch()
        if parameters is None:
            raise NoMoreTrialError("every selected student has its trial")
        self._handed_out[parameter_id] = identity(parameters)
        return signed(parameters, secret_of(self._folder()))

    def receive_trial_result(self, parameter_id: int, parameters: Any, value: Any, **kwargs: Any) -> None:
        """Note what a student reached, in the metric that it is judged by."""
        self.import_data([{"parameter": parameters or {}, "value": value}])  # NNI's "no more" overwrites some by ""

    def trial_end(self, parameter_id: int, success: bool, **kwargs: Any) -> None:
        """Note a student that failed, or hand out again one whose trial was killed: NNI does neither."""
        with _unharmed("the end of a trial"):
            chosen, student = self._chosen, self._handed_out.get(parameter_id)
            if success or chosen is None or student is None:
                return
            fetch(self._experiment())
            words = self._words.new()
            for word in words:
                if word.final:
                    chosen.failed(word.student or student)
                else:
                    chosen.lost(word.student or student, again=False)
            if not words and chosen.lost(student):
                self._hand_out_again(chosen)

    def _hand_out_again(self, chosen: Students) -> None:
        """Give NNI a student of itself: it asks for none once it has started as many trials as it was to start."""
        self._make_up_for_lost_trials(chosen)
        parameters = chosen.next()
        if parameters is not None:
            from nni.runtime.msg_dispatcher import _create_parameter_id

            parameter_id = _create_parameter_id()
            self._handed_out[parameter_id] = identity(parameters)
            self._dispatcher.send_trial_callback(parameter_id, signed(parameters, secret_of(self._folder())))

    def import_data(self, data: list[dict[str, Any]]) -> None:
        """Note the results of trials that ran, or began, before a resume."""
        with _unharmed("results"):
            self._chosen = self._chosen or self._earlier_students()
            if self._chosen is not None:
                for entry in data:
                    self._chosen.succeeded(*result_of(entry["parameter"], entry["value"]))

    def _on_exit(self) -> None:
        """Bring back what ended last; NNI calls it when the experiment is stopped."""
        if self._fetcher is not None:
            self._fetcher.stop()

    def _fetch(self) -> None:
        """Bring back what trials on other machines write, from now on."""
        if self._fetcher is None:
            self._fetcher = Fetcher(self._experiment(), _log.warning)
            self._fetcher.start()

    def _rerun(self) -> list[str]:
        """The students of the trials that NNI itself starts again, after a resume, and of those that run."""
        recorded = [identity(entry) for entry in getattr(self._dispatcher, "recovered_trial_params", {}).values()]
        port = manager_port()
        if recorded and port is not None:
            if self._fetcher is None:  # which began where is told by their folders
                fetch(self._experiment())
            return held(self._experiment(), Experiment(port).trials())
        return recorded

    def _earlier_students(self) -> Students | None:
        """Those that an earlier process of this experiment selected."""
        path = self._folder() / STUDENTS
        if not path.exists():
            return None
        students = Students.load(path)
        for word in self._words.new():  # of trials that ended when no tuner was there
            if word.final and word.student is not None:
                students.failed(word.student)
        return students

    def _make_up_for_lost_trials(self, chosen: Students) -> None:
        """Let NNI start trials in place of those that were killed."""
        port, planned = manager_port(), self._folder() / PLANNED
        with _unharmed("lost trials"):
            if port is not None and planned.exists():
                allow_for(list(chosen), read_json(planned), Experiment(port))

    def _search(self) -> Students:
        """Search, and select the best."""
        share_cores()
        restore_gpus()
        (self._folder() / ERROR).unlink(missing_ok=True)
        from nni_blockswap.experiment.classargs import read_settings
        from nni_blockswap.searching import search, table_of

        base = code_directory()
        settings, count = read_settings(self._settings, self._search_space, base)
        _log.info("Searching: %s", settings)
        watch = _Watch(self._folder() / PROGRESS, self._dispatcher)
        if isinstance(self._settings.get("library"), Mapping):
            from nni_blockswap.training.schooling import LibraryPlan, prepare

            prepare(LibraryPlan.read(self._settings["library"], settings, base), watch.before)
        if self._settings.get("comparison"):
            return self._compare(settings, count, watch)
        ranking = search(settings, self._folder() / SEARCH, watch)[0]
        best = ranking.top(count)
        if len(best) < count:
            raise BudgetError(
                f"{count} students are asked for and {len(best)} architectures have a score at {ranking.budget}; "
                "lower students and maxTrialNumber, raise samples, or widen the budget."
            )
        left = settings.parsed()[0].spelled_unused(table_of(settings), best[0].costs)
        _log.info(
            "The best of %d at %s: %s (%s)", len(ranking.architectures), ranking.budget, best[0].spelled_costs, left
        )
        self._search_is_over()
        return Students.select(self._folder() / STUDENTS, best)

    def _compare(self, settings: "SearchSettings", count: int, watch: "_Watch") -> Students:
        """BlockSwap's students and those of the methods that it is compared to."""
        from nni_blockswap.studies.comparison import Comparison, contestants

        trials = contestants(Comparison.read(self._settings["comparison"]), settings, self._folder() / SEARCH, watch)
        self._search_is_over()
        return Students.of(self._folder() / STUDENTS, trials[:count])

    def _search_is_over(self) -> None:
        """Leave the GPU to the trials, and keep in mind how many were to be started."""
        release_gpu()
        planned = max_trials()
        if planned is not None:
            write_json(self._folder() / PLANNED, planned)

    def _give_up(self, sentence: str) -> NoReturn:
        """End the experiment with status ERROR, and let the person who started it see why."""
        _log.error("%s", sentence)
        with suppress(OSError):
            write_text(self._folder() / ERROR, sentence + "\n")
        tell(sentence)
        if self._dispatcher is not None:
            self._dispatcher.report_error(sentence)
        raise NoMoreTrialError(sentence)

    def _folder(self) -> Path:
        return Path(self.get_checkpoint_path() or ".")

    def _experiment(self) -> Path:
        return self._folder().absolute().parent


class StoppedError(Exception):
    """Ends the dispatcher's worker at once; NNI's own exception would have it talk to a manager that has gone."""


class _Watch:
    """Keeps progress.json up to date, and ends a search whose experiment is being stopped."""

    def __init__(self, path: Path, dispatcher: Any) -> None:
        self._path, self._dispatcher, self._next = path, dispatcher, 0.0
        self._engine = ""

    def __call__(self, progress: "Progress") -> None:
        if progress.engine != self._engine and progress.has_pace:
            self._engine = progress.engine
            _log.info("%s", progress.spelled_engine)
        self._note(progress.done == progress.total, asdict(progress))

    def before(self, what: str, progress: "Steps") -> None:
        """Of what comes before the search: its teacher's training, its library."""
        self._note(False, {"what": what, **asdict(progress)})

    def _note(self, last: bool, content: dict[str, Any]) -> None:
        if getattr(self._dispatcher, "stopping", False):
            raise StoppedError("the experiment is being stopped; nnictl resume goes on with the search.")
        if last or time.monotonic() >= self._next:
            self._next = time.monotonic() + 1
            write_json(self._path, content)


@contextmanager
def _unharmed(what: str) -> Iterator[None]:
    """Log an error: it would leave the experiment RUNNING for ever, and no student depends on these calls."""
    try:
        yield
    except Exception:
        _log.exception("Could not note %s.", what)
