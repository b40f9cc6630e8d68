"""The command ``blockswap``: one small module a subcommand, each a thin face of the library."""

import argparse
import io
import logging
import os
import select
import signal
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from nni_blockswap.cli.interruption import handled, interrupt
from nni_blockswap.errors import BlockSwapError, StateError, is_out_of_memory, readable
from nni_blockswap.trust import allow

COMMANDS = (
    "space",
    "search",
    "front",
    "show",
    "latency",
    "library",
    "rank-study",
    "sensitivity",
    "check",
    "run",
    "status",
    "export",
    "report",
    "reproduce",
    "init",
)

STDOUT = 1

LESS_MEMORY = {
    "recompute": "with --recompute, which gives the same scores",
    "blocks_at_once": "with --processes 1 --blocks-at-once 1, which gives the same library",
    "batch_size": "with a smaller --batch-size and, where there is one, another --out",
}
"""What takes less of it, by the option that a command may have."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; a user's mistake ends in one sentence and exit status 2."""
    # Before torch is imported. Threads that spin cost others, and each other, shared cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _print_anything()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if any("\0" in word for word in words):
        parser().error("an option has a NUL; remove it.")
    options = parser().parse_args(words)
    try:
        quieten()
        allow(getattr(options, "allow", ()))
        with handled(interrupt):
            status: int = options.run(options)
        print(end="", flush=True)  # what cannot be written is told here, not at Python's end
    except BlockSwapError as error:
        print(f"blockswap: {readable(str(error))}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        print(f"blockswap: memory ran out; what was done is kept. {_with_less_memory(options)}.", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder that cannot be written to
        if isinstance(error, BrokenPipeError) and _is_unread():
            return 128 + signal.SIGPIPE
        print(f"blockswap: {readable(str(error))}; what was done is kept.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("blockswap: interrupted; what was done is kept, the same command goes on from there.", file=sys.stderr)
        return 130
    return status


def parser() -> argparse.ArgumentParser:
    """Reads all subcommands; its result's ``run`` is the one that was named."""
    found = argparse.ArgumentParser(prog="blockswap", description="Fisher-guided block substitution under a budget.")
    subparsers = found.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = import_module(f"{__name__}.{name.replace('-', '_')}")
        subparser = subparsers.add_parser(name, help=str(module.__doc__).splitlines()[0], description=module.__doc__)
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    return found


def _is_unread() -> bool:
    """Whether the reader of stdout has what it wanted and is gone, as head; what is left then goes nowhere."""
    watched = select.poll()
    watched.register(STDOUT, 0)
    is_gone = any(event & select.POLLERR for _, event in watched.poll(0))
    if is_gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)
    return is_gone


def _with_less_memory(options: argparse.Namespace) -> str:
    ways = [way for name, way in LESS_MEMORY.items() if hasattr(options, name)]
    return f"Start the same command again {', or '.join(ways) or 'where there is more'}"


def _print_anything() -> None:
    """Let a terminal that has no letter for something show a question mark there."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def quieten() -> None:
    """Let spaces of the current folder be imported, and silence what users can do nothing about."""
    try:
        here = str(Path.cwd())
    except FileNotFoundError as error:
        raise StateError("the current folder was deleted; change to another one.") from error
    if here not in sys.path:
        sys.path.insert(0, here)
    warnings.filterwarnings("ignore", message=".*is found to be not a nn.Module")
    warnings.filterwarnings("ignore", message="Initializing zero-element tensors")  # an error says more
    logging.getLogger("nni").setLevel(logging.ERROR)
    measuring = logging.getLogger("nni_blockswap.cost")  # which takes minutes before anything else is to be seen
    measuring.setLevel(logging.INFO)
    if not measuring.handlers:
        measuring.addHandler(_Lines())


class _Lines(logging.Handler):
    """Log records as plain lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        print(record.getMessage(), file=sys.stderr, flush=True)
