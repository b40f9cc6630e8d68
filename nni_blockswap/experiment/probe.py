"""What a trial would find on a machine: this file is sent there and run by the Python of its trials.

It needs nothing else there, and any Python from 3.6 on can run it, to be told that it is too old. Its argument is JSON:
``paths`` and ``modules`` to look for, and the ``address`` where NNI's manager is to be reached. It prints JSON.
"""

import json
import os
import socket
import sys
from importlib import import_module, util


def main() -> None:
    """Look, and print what was found."""
    asked = json.loads(sys.argv[1])
    sys.path[:] = [path for path in sys.path if path not in ("", os.getcwd())]  # trials run elsewhere
    found = {
        "python": list(sys.version_info[:2]),
        "packages": packages(),
        "pip": util.find_spec("pip") is not None,
        "absent_paths": [path for path in asked["paths"] if not os.path.exists(os.path.expanduser(path))],
        "absent_modules": [name for name in asked["modules"] if util.find_spec(name) is None],
        "no_way_back": None if asked["address"] is None else no_way_to(*asked["address"]),
    }
    sys.stdout.write(json.dumps(found) + "\n")


def packages() -> "dict[str, str]":
    """Version of each package, by its name in lower case and with hyphens."""
    try:
        metadata = import_module("importlib.metadata")
    except ImportError:  # of Python 3.8
        return {}
    return {one.metadata["Name"].lower().replace("_", "-"): one.version for one in metadata.distributions()}


def no_way_to(host: str, port: int) -> "str | None":
    """Why it cannot be reached; None where it can."""
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError as error:
        return str(error)
    return None


if __name__ == "__main__":
    main()
