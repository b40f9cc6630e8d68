"""Two machines: sshds on loopback, each with a home of its own."""

import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nni_blockswap.errors import MachineError
from nni_blockswap.experiment.machines import connected, machines_of

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")

SETTINGS = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
Subsystem sftp internal-sftp
SetEnv HOME={home} PIP_NO_INDEX=1 OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES=
"""
"""NNI upgrades itself by pip on each machine; without an index it stays what it is."""


@pytest.fixture(scope="session")
def two_machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, Any]]]:
    """Entries of a machineList; skips where no sshd can be had. ``home`` in each is not NNI's, and to be taken out."""
    if SSHD is None or shutil.which("ssh-keygen") is None:
        pytest.skip("needs sshd and ssh-keygen, Debian's openssh-server")
    folder = tmp_path_factory.mktemp("machines")
    for name in ("host_key", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    running = [_start(folder, folder / f"home{number}") for number in (1, 2)]
    try:
        for process, entry in running:
            _wait_for(process, entry, folder)
        yield [entry for _, entry in running]
    finally:
        for process, _ in running:
            process.terminate()
            process.wait()


def _start(folder: Path, home: Path) -> tuple["subprocess.Popen[bytes]", dict[str, Any]]:
    home.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = folder / f"{home.name}.conf"
    settings.write_text(SETTINGS.format(port=port, folder=folder, home=home))
    with (folder / f"{home.name}.log").open("wb") as log:
        process = subprocess.Popen([str(SSHD), "-D", "-e", "-f", settings], stderr=log)
    user = pwd.getpwuid(os.getuid()).pw_name
    entry = {"host": "127.0.0.1", "port": port, "user": user, "sshKeyFile": str(folder / "key")}
    return process, {**entry, "pythonPath": str(Path(sys.executable).parent), "home": home}


def _wait_for(process: "subprocess.Popen[bytes]", entry: dict[str, Any], folder: Path) -> None:
    (machine,) = machines_of({"platform": "remote", "machineList": [entry]}, Path())
    for _ in range(50):
        try:
            with connected(machine):
                return
        except MachineError as error:
            why = str(error)
        if process.poll() is not None:
            break
        time.sleep(0.1)
    pytest.skip(f"sshd does not serve: {why} {(folder / entry['home'].name).with_suffix('.log').read_text()[-300:]}")
