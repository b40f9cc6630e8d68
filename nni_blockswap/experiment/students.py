"""The students that a search selected and what became of each: never in memory alone."""

import threading
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nni_blockswap.files import read_json, write_json

if TYPE_CHECKING:  # torch takes seconds to import, and a tuner has ten to connect
    from nni_blockswap.architecture import Architecture

WAITING, RUNNING, SUCCEEDED, FAILED, LOST = "waiting", "running", "succeeded", "failed", "lost"

TRIALS = 3
"""That a process of the tuner gives a student whose trials are ended from outside."""

IDENTITY = ("architecture_id", "method", "variant", "seed")
"""Names a trial; the last three are there in a comparison, which trains an architecture more than once."""


@dataclass
class Student:
    """One selected architecture.

    Attributes:
        parameters: what its trial is given, see ``Architecture.to_parameters``; in a comparison with what
            ``comparison.contestants`` adds.
        state: ``waiting``, ``running``, ``succeeded``, ``failed`` where it cannot be trained, or ``lost`` where its
            trials were ended from outside: ``nnictl resume`` tries again.
        accuracy: the trial's final result in the metric that it is judged by, which need not be one; None before.
    """

    parameters: dict[str, Any]
    state: str = WAITING
    accuracy: float | None = None

    @property
    def id(self) -> str:
        """Names the student's trial."""
        return identity(self.parameters)

    @property
    def name(self) -> str:
        """For people: its rank, or in a comparison its method."""
        given = self.parameters
        return f"{given['method']} {given['variant']} #{given['seed']}" if "method" in given else str(given["rank"])


class Students:
    """The selected students, best first. Every change is on disk when the call that makes it returns; thread-safe.

    A hand-out is not yet a trial: NNI asks for more than it runs, and a kill makes it forget what it had not started.
    So only a trial's end is final, and a new process hands out again whatever has not ended.
    """

    def __init__(self, path: Path, students: Sequence[Student]) -> None:
        self._path = path
        self._students = {student.id: student for student in students}
        self._handed_out: set[str] = set()
        self._lost: Counter[str] = Counter()
        self._lock = threading.Lock()

    @classmethod
    def select(cls, path: Path, architectures: "Sequence[Architecture]") -> "Students":
        """A new file at ``path`` with ``architectures``, best first."""
        return cls.of(path, [one.to_parameters(rank) for rank, one in enumerate(architectures, start=1)])

    @classmethod
    def of(cls, path: Path, parameters: Sequence[dict[str, Any]]) -> "Students":
        """A new file at ``path`` with the trials of ``parameters``, in their order."""
        students = cls(path, [Student(one) for one in parameters])
        students._save()
        return students

    @classmethod
    def load(cls, path: Path) -> "Students":
        """Read what an earlier process wrote."""
        return cls(path, read(path))

    def next(self, rerun: Collection[str] = ()) -> dict[str, Any] | None:
        """Parameters of the best student that nobody has, or None; NNI itself starts those with an id in ``rerun``."""
        with self._lock:
            for student in self._students.values():
                if student.id not in self._handed_out and student.id not in rerun and not ended(student):
                    self._handed_out.add(student.id)
                    student.state = RUNNING
                    self._save()
                    return student.parameters
        return None

    def succeeded(self, which: str, value: float) -> None:
        """Note a trial's result. It outweighs a failure: of trials side by side, NNI may name the wrong one failed."""
        with self._lock:
            if which in self._students:
                self._students[which].state, self._students[which].accuracy = SUCCEEDED, value
                self._save()

    def failed(self, which: str) -> None:
        """Note that a student cannot be trained."""
        with self._lock:
            if which in self._students and self._students[which].state != SUCCEEDED:
                self._students[which].state = FAILED
                self._save()

    def lost(self, which: str, *, again: bool = True) -> bool:
        """Note that a trial was ended from outside; whether its student is to be had from ``next`` once more.

        Args:
            again: whether this process may hand it out again; it does so until there were ``TRIALS``.
        """
        with self._lock:
            student = self._students.get(which)
            if student is None or ended(student):
                return False
            self._lost[which] += 1
            waits = again and self._lost[which] < TRIALS
            student.state = WAITING if waits else LOST
            if waits:
                self._handed_out.discard(which)
            self._save()
            return waits

    def __iter__(self) -> Iterator[Student]:
        """Best first."""
        return iter(self._students.values())

    def _save(self) -> None:
        write_json(self._path, [asdict(student) for student in self._students.values()])


def read(path: Path) -> list[Student]:
    """The students in a file, best first; OSError and ValueError are the caller's to explain."""
    return [Student(**entry) for entry in read_json(path)]


def identity(parameters: Mapping[str, Any]) -> str:
    """What names a trial, from its parameters or its results."""
    return " ".join(str(parameters[name]) for name in IDENTITY if name in parameters)


def result_of(parameters: Mapping[str, Any], value: Any) -> tuple[str, float]:
    """(identity, value) of a trial's final metric, a number or a mapping with ``default``.

    The metric's own id comes first: with trialConcurrency above 1 NNI records a trial's metric beside the parameters of
    another (microsoft/nni issues 5693 and 5726).
    """
    if isinstance(value, Mapping):
        return identity({**parameters, **value}), float(value["default"])
    return identity(parameters), float(value)


def ended(student: Student) -> bool:
    """Whether nothing is left to be done for it."""
    return student.state in (SUCCEEDED, FAILED)
