"""The machines of NNI's remote training service, by ssh."""

import logging
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nni_blockswap.errors import ConfigError, MachineError, first_line
from nni_blockswap.files import expanded

if TYPE_CHECKING:  # a quarter of a second that most commands do without
    from paramiko import SSHClient

PATIENCE = 15.0
"""Seconds for a machine to answer."""

KINDS = {"port": int, **dict.fromkeys(("sshKeyFile", "sshPassphrase", "password", "pythonPath"), str)}
"""Of what an entry of machineList may say."""


@dataclass(frozen=True)
class RemoteMachine:
    """An entry of trainingService.machineList; what it says otherwise concerns NNI alone.

    Attributes:
        python_path: the folder that holds ``python``; NNI puts it first on the worker's PATH.
    """

    host: str
    user: str
    port: int = 22
    ssh_key_file: Path | None = None
    ssh_passphrase: str | None = None
    password: str | None = None
    python_path: str | None = None

    def __str__(self) -> str:
        return f"{self.user}@{self.host}:{self.port}"


def machines_of(service: Mapping[str, Any], base: Path) -> list[RemoteMachine]:
    """The machines of a ``trainingService``; none where its platform is another.

    Args:
        base: what a relative path to a key is relative to.

    Raises:
        ConfigError: an entry says something of the wrong type.
    """
    return [_machine(entry, base) for entry in machine_entries(service)]


def machine_entries(service: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Those of a ``trainingService``'s machineList that name host and user; none where its platform is another."""
    listed = service.get("machineList") if service.get("platform") == "remote" else None
    entries = listed if isinstance(listed, list) else []
    return [entry for entry in entries if isinstance(entry, dict) and {"host", "user"} <= entry.keys()]


def _machine(entry: Mapping[str, Any], base: Path) -> RemoteMachine:
    for name, kind in KINDS.items():  # of a password no more is told than its type
        if entry.get(name) is not None and type(entry[name]) is not kind:
            wanted = "a whole number" if kind is int else "text, in quotes where it looks like something else"
            raise ConfigError(
                f"{name} of the machine {entry['host']} is {wanted}, not a {type(entry[name]).__name__}; correct it."
            )
    key = None if entry.get("password") is not None else base / expanded(entry.get("sshKeyFile") or "~/.ssh/id_rsa")
    return RemoteMachine(
        host=str(entry["host"]),
        user=str(entry["user"]),
        port=entry.get("port") or 22,
        ssh_key_file=key,
        ssh_passphrase=entry.get("sshPassphrase"),
        password=entry.get("password"),
        python_path=entry.get("pythonPath"),
    )


@contextmanager
def connected(machine: RemoteMachine) -> Iterator["SSHClient"]:
    """A connection. A host that nobody has met is trusted, as NNI does; one whose key has changed is not.

    Raises:
        MachineError: there is none to be had, or it broke.
    """
    import paramiko

    logging.getLogger("paramiko").setLevel(logging.WARNING)  # of each connection it says five things
    with paramiko.SSHClient() as client:
        client.load_system_host_keys()
        client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
        try:
            client.connect(
                machine.host,
                machine.port,
                machine.user,
                password=machine.password,
                key_filename=None if machine.ssh_key_file is None else str(machine.ssh_key_file),
                passphrase=machine.ssh_passphrase,
                timeout=PATIENCE,
                banner_timeout=PATIENCE,
                auth_timeout=PATIENCE,
                allow_agent=False,  # NNI has neither agent nor other keys
                look_for_keys=False,
            )
        except paramiko.AuthenticationException as error:
            raise MachineError(
                f"{machine} refuses user and key ({first_line(error)}); try: ssh {_options(machine)}"
            ) from error
        except (paramiko.SSHException, OSError, ValueError) as error:
            raise MachineError(
                f"{machine} cannot be reached by ssh ({first_line(error)}); try: ssh {_options(machine)}"
            ) from error
        try:
            yield client
        except (paramiko.SSHException, EOFError) as error:
            raise MachineError(f"the connection to {machine} broke ({first_line(error)}); try again.") from error


def run(client: "SSHClient", command: str, given: str = "") -> tuple[int, str, str]:
    """Run ``command`` there with ``given`` as its input: (exit status, stdout, stderr)."""
    stdin, stdout, stderr = client.exec_command(command, timeout=4 * PATIENCE)
    stdin.write(given)
    stdin.channel.shutdown_write()
    said = stdout.read().decode(errors="replace")
    return stdout.channel.recv_exit_status(), said, stderr.read().decode(errors="replace")


def _options(machine: RemoteMachine) -> str:
    key = "" if machine.ssh_key_file is None else f"-i {shlex.quote(str(machine.ssh_key_file))} "
    return f"{key}-p {machine.port} {machine.user}@{machine.host} true"
