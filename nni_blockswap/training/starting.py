"""What a student starts from: fresh weights, its teacher's, or what somebody else adds to the table."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nni_blockswap.architecture import Architecture
from nni_blockswap.blocks.weights import draw_anew, initialise_layer, redrawing, seeded
from nni_blockswap.errors import ConfigError
from nni_blockswap.tasks.loader import LoaderTask
from nni_blockswap.training.sources import ORIGINAL

if TYPE_CHECKING:
    from nni_blockswap.library.library import Library

Start = Callable[[nn.Module, nn.Module | None, str, int], str]
"""Sets the weights of a student, given its teacher if it has one, what stands after "=" in the option, and a seed; says
in a few words what it did."""


def start(student: nn.Module, how: str, teacher: nn.Module | None, seed: int) -> str:
    """Set the weights that ``student`` starts from.

    Args:
        how: a name in ``STARTS``, with an argument where it takes one: "fresh", "teacher", "library=DIR".
        teacher: where it has one.
        seed: of what is drawn.

    Returns:
        A few words on what was done.

    Raises:
        ConfigError: there is no such start, or it cannot be made of this student or without a teacher.
    """
    check_start(how)
    name, _, argument = how.partition("=")
    return STARTS[name](student, teacher, argument, seed)


def check_start(how: str) -> None:
    """Raise ConfigError unless there is such a start, with a folder where it takes one, and only there."""
    name, _, argument = str(how).partition("=")  # a program may give anything
    if name not in STARTS:
        raise ConfigError(f"a student starts from {' or '.join(STARTS)}, not '{how}'.")
    if name == LIBRARY and not argument:
        raise ConfigError(f"a student starts from a library in a folder, --init {LIBRARY}=DIR; name it.")
    if name in (FRESH, TEACHER) and how != name:
        raise ConfigError(f"--init {name} takes nothing beside it, not '{how}'; --teacher says whose weights to take.")


def library_folder(how: str | None) -> str | None:
    """DIR of ``library=DIR``, empty where it is not named; None where a student starts from something else."""
    name, _, folder = (how or "").partition("=")
    return folder if name == LIBRARY else None


def is_of_library(how: str | None) -> bool:
    """Whether a student starts from a library, and is trained by ``recipe.OF_A_LIBRARY`` where nothing else is said."""
    return library_folder(how) is not None


def remembering(architecture: Architecture, how: str) -> Architecture:
    """``architecture`` whose provenance names the library that its network starts from, if any."""
    digest = library_digest(how)
    if digest is None:
        return architecture
    library = {"library": library_folder(how), "library_digest": digest}
    return replace(architecture, provenance={**architecture.provenance, **library})


def identity(how: str) -> str:
    """``how`` as it identifies a run: a library by its digest, wherever it is, and not when it has learned more."""
    digest = library_digest(how)
    return how if digest is None else f"{LIBRARY}={digest}"


def library_digest(how: str) -> str | None:
    """Of the library that a student starts from; None where it starts from something else."""
    folder = library_folder(how)
    return None if folder is None else _library(folder).digest


def _library(folder: str) -> "Library":
    """The library in ``folder``, whose files are looked at once while it stays as it is: a trial asks for it often."""
    from nni_blockswap.library.library import ABOUT  # NNI comes with it, and takes seconds

    about = Path(folder) / ABOUT
    return _loaded(folder, about.stat().st_mtime_ns if about.exists() else None)


@lru_cache(maxsize=1)
def _loaded(folder: str, written: int | None) -> "Library":
    from nni_blockswap.library.library import Library

    return Library.load(folder)


def taught_by(how: str) -> str | None:
    """Where the teacher of the library that a student starts from came from; None where nobody can say."""
    folder = library_folder(how)
    if folder is None:
        return None
    from nni_blockswap.library.library import read_about

    about = read_about(Path(folder))
    return None if about is None else str(about.get("teacher") or ORIGINAL)


def check_taught(how: str, data: str, data_options: Mapping[str, Any], teacher: nn.Module) -> None:
    """Raise StateError where the library that a student starts from, if any, is of another teacher, or of other data.

    Args:
        how: the student starts.
        data: name of the data set that it is trained on.
        data_options: what is said about that.
        teacher: the original, as its space builds it.
    """
    folder = library_folder(how)
    if folder is None:
        return
    library = _library(folder)
    library.check_teacher(teacher.state_dict())
    check_data(library, data, data_options)


def check_data(library: "Library", data: str, data_options: Mapping[str, Any]) -> None:
    """Raise StateError where a student's data, as in ``check_taught``, are others than those of its library."""
    if library.about["data"] != LoaderTask.name:  # of batches that a program held nobody knows what they were
        library.check_data(data, data_options)


def redraw(student: nn.Module, teacher: nn.Module | None, argument: str, seed: int) -> str:
    """Fresh weights as the paper's authors draw them; see ``blocks.weights.initialise``.

    Raises:
        ConfigError: a module has weights that nobody but its constructor can draw, or that are computed from others.
    """
    for path, module in student.named_modules():
        _check_can_be_drawn(path, module)
    with seeded(seed):
        for module in student.modules():
            draw_anew(module)
            initialise_layer(module)
    return "fresh weights"


def _check_can_be_drawn(path: str, module: nn.Module) -> None:
    """Raise ConfigError unless the module's own weights, if any, can be drawn anew."""
    kind = type(module).__name__
    where = f"'{path}' ({kind})" if path else kind
    computed = _computed(module)
    if computed is not None:
        raise ConfigError(
            f"{where} computes its {computed} from other weights, which are not drawn anew; end that, as by "
            "remove_weight_norm or prune.remove, leave init out, or let it be teacher."
        )
    if redrawing(module) is None and next(module.parameters(recurse=False), None) is not None:
        raise ConfigError(
            f"{where} has weights and no reset_parameters to draw them anew; build the student afresh and leave init "
            "out, or let it start from its teacher's weights, init teacher."
        )


def _computed(module: nn.Module) -> str | None:
    """What a hook computes from parameters: ``weight`` from ``weight_orig``, or ``weight_g`` and ``weight_v``."""
    names = {name for name, _ in module.named_parameters(recurse=False)}
    plain = (name for name, value in vars(module).items() if isinstance(value, Tensor))
    return next((name for name in plain if names & {f"{name}_orig", f"{name}_g", f"{name}_v"}), None)


def from_teacher(student: nn.Module, teacher: nn.Module | None, argument: str, seed: int) -> str:
    """The teacher's weights and statistics, wherever name and shape are the student's, too.

    Raises:
        ConfigError: there is no teacher, or it has nothing of the kind.
    """
    if teacher is None:
        raise ConfigError("a student that starts from its teacher's weights needs a teacher.")
    taken = load_matching(student, teacher.state_dict())
    if not taken:
        raise ConfigError("the teacher has no weights of the names and shapes of the student's to start from.")
    return f"{len(taken)} of its {len(student.state_dict())} tensors from its teacher"


@torch.no_grad()
def load_matching(network: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Copy into ``network`` what ``state`` has of the same name and shape; their names."""
    taken = []
    for name, own in network.state_dict().items():
        given = state.get(name)
        if given is not None and given.shape == own.shape:
            own.copy_(given)
            taken.append(name)
    return taken


def from_library(student: nn.Module, teacher: nn.Module | None, argument: str, seed: int) -> str:
    """What is not swapped from the teacher, the rest from the library in the folder ``argument``.

    Raises:
        ConfigError: there is no teacher, or nobody knows which architecture the student is.
        StateError: the library is of another space or teacher.
    """
    from nni_blockswap.library.assembling import furnish

    architecture = getattr(student, "architecture", None)
    if teacher is None or not isinstance(architecture, Architecture):
        raise ConfigError(
            "a student starts from a library, library=DIR, if an Architecture has built it and it has a teacher."
        )
    library = _library(argument)
    furnish(student, architecture, teacher.state_dict(), library)
    return f"the library in '{argument}' ({library.digest})"


FRESH, TEACHER, LIBRARY = "fresh", "teacher", "library"
STARTS: dict[str, Start] = {FRESH: redraw, TEACHER: from_teacher, LIBRARY: from_library}
