"""Bring back what trials wrote on other machines: NNI's remote training service leaves it there.

A trial writes to ~/nni-experiments/<experiment>/environments/<worker>/trials/<trial> on its machine. Here it lands in
the same place below the experiment's folder, where the local training service would have put it: the web page's
TensorBoard button, tables, export and report know no difference. Checkpoints stay where a resumed trial needs them.
"""

import json
import os
import posixpath
import secrets
import sqlite3
import stat
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nni_blockswap.errors import MachineError
from nni_blockswap.experiment.machines import RemoteMachine, connected, machines_of, run
from nni_blockswap.files import locked, write_atomically
from nni_blockswap.results.trial import RESULT, WORD, link_curves

if TYPE_CHECKING:
    from paramiko import SFTPAttributes, SFTPClient

PERIOD = 10.0
"""Seconds between two looks at the machines."""

SILENCE = 60.0
"""Seconds that a machine may say nothing while files come; one that has lost its power never says a word."""


def fetch(folder: Path) -> list[str]:
    """Copy what is new of the trials of the experiment in ``folder``; nothing where they run on this machine.

    Returns:
        A sentence for each machine that it could not be had from.
    """
    machines = machines_of(training_service(folder), folder)
    if not machines:
        return []
    faults = []
    with locked(folder / ".fetching"):  # curves are appended to, and by one process at a time
        for machine in machines:
            try:
                _fetch_from(machine, folder)
            except (MachineError, OSError) as error:
                silent = f"it said nothing for {SILENCE:g} seconds." if isinstance(error, TimeoutError) else ""
                faults.append(f"what trials wrote on {machine} stays there for now: {silent or error}")
    return faults


def training_service(folder: Path) -> Mapping[str, Any]:
    """An experiment's trainingService as NNI keeps it in its database; empty where there is none."""
    database = folder / "db" / "nni.sqlite"
    if not database.exists():
        return {}
    try:
        with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            newest = "select params from ExperimentProfile order by revision desc limit 1"
            row = connection.execute(newest).fetchone()
        service = json.loads(row[0])["trainingService"] if row else {}
    except (sqlite3.Error, ValueError, KeyError):
        return {}
    return service if isinstance(service, dict) else {}


class Fetcher:
    """Fetches in the background, every ``PERIOD`` seconds and when it is stopped; ``say`` hears of new faults."""

    def __init__(self, folder: Path, say: Any) -> None:
        self._folder, self._say = folder, say
        self._over = threading.Event()
        self._told: list[str] = []
        self._thread = threading.Thread(target=self._run, name="fetching", daemon=True)

    def start(self) -> None:
        """Begin, where there is another machine to fetch from."""
        if machines_of(training_service(self._folder), self._folder):
            self._thread.start()

    def stop(self) -> None:
        """Fetch a last time; returns when that is done, or at once where there was nothing to begin."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while True:
            last = self._over.wait(PERIOD)
            faults = fetch(self._folder)
            for fault in faults:
                if fault not in self._told:
                    self._say(fault)
            self._told = faults
            if last:
                return


def _fetch_from(machine: RemoteMachine, folder: Path) -> None:
    with connected(machine) as client, client.open_sftp() as sftp:
        sftp.get_channel().settimeout(SILENCE)
        _, home, _ = run(client, 'printf %s "$HOME"')
        root = posixpath.join(home, "nni-experiments", folder.name)
        if _is_here(sftp, root, folder):
            return
        for environment in _folders(sftp, posixpath.join(root, "environments")):
            for trial in _folders(sftp, posixpath.join(environment, "trials")):
                target = folder / posixpath.relpath(trial, root)
                _copy(sftp, trial, target)
                link_curves(target)


def _is_here(sftp: "SFTPClient", root: str, folder: Path) -> bool:
    """Whether the machine's folder is this machine's: a home that they share, or one machine under two names."""
    mark = folder / f".mark.{secrets.token_hex(8)}"
    mark.touch()
    try:
        return _there(sftp, posixpath.join(root, mark.name))
    finally:
        mark.unlink()


def _there(sftp: "SFTPClient", path: str) -> bool:
    try:
        sftp.stat(path)
    except FileNotFoundError:
        return False
    return True


def _folders(sftp: "SFTPClient", path: str) -> Iterator[str]:
    if _there(sftp, path):
        entries = sorted(sftp.listdir_attr(path), key=lambda entry: entry.filename)
        yield from (posixpath.join(path, entry.filename) for entry in entries if stat.S_ISDIR(entry.st_mode or 0))


def _copy(sftp: "SFTPClient", source: str, target: Path) -> None:
    """Copy a folder's new files; its result last, as that says that the rest is there."""
    entries = sftp.listdir_attr(source)
    if all(entry.filename != WORD for entry in entries):
        (target / WORD).unlink(missing_ok=True)  # of a trial that goes on
    for entry in sorted(entries, key=lambda entry: entry.filename == RESULT):
        theirs, ours = posixpath.join(source, entry.filename), target / entry.filename
        if stat.S_ISDIR(entry.st_mode or 0):
            _copy(sftp, theirs, ours)
        elif stat.S_ISREG(entry.st_mode or 0) and _wanted(entry.filename) and not _same(entry, ours):
            _copy_file(sftp, theirs, ours, entry)


def _wanted(name: str) -> bool:
    return not name.startswith(".") and not name.endswith((".ckpt", ".lock"))


def _same(theirs: "SFTPAttributes", ours: Path) -> bool:
    if not ours.exists():
        return False
    own = ours.stat()
    return (own.st_size, int(own.st_mtime)) == (theirs.st_size, theirs.st_mtime)


def _copy_file(sftp: "SFTPClient", theirs: str, ours: Path, entry: "SFTPAttributes") -> None:
    if entry.filename.startswith("events.out.tfevents"):  # TensorBoard keeps it open: it grows, and is never replaced
        ours.parent.mkdir(parents=True, exist_ok=True)
        with ours.open("ab") as stream, sftp.open(theirs, "rb") as rest:
            rest.seek(stream.tell())
            stream.write(rest.read())
    else:
        write_atomically(ours, lambda stream: sftp.getfo(theirs, stream))
    os.utime(ours, (entry.st_mtime or 0, entry.st_mtime or 0))
