"""What the tuner hands out is signed: a trial imports what its parameters name, and NNI's port takes some of anybody.

    signature = HMAC-SHA256(secret of the experiment, parameters in canonical JSON)

The secret lies in the experiment's checkpoint folder, for the eyes of its owner alone.
"""

import hmac
import json
import secrets
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from nni_blockswap.errors import StateError
from nni_blockswap.experiment.layout import CHECKPOINT, SECRET
from nni_blockswap.files import write_atomically

SIGNATURE = "signature"


def secret_of(checkpoint: Path) -> str:
    """The secret of the experiment with this checkpoint folder; made when it is first asked for."""
    path = checkpoint / SECRET
    if not path.exists():
        write_atomically(path, lambda stream: stream.write(secrets.token_hex(32).encode()), mode=0o600)
    return path.read_text(encoding="utf-8")


def signed(parameters: Mapping[str, Any], secret: str) -> dict[str, Any]:
    """``parameters`` with their signature.

    Example:
        >>> signed({"block_00": "S", "macs": 5}, "s")["signature"][:8]
        'dbff31f6'
    """
    return {**parameters, SIGNATURE: _signature(parameters, secret)}


def is_signed(parameters: Mapping[str, Any], trial: Path) -> bool:
    """Whether the tuner of the trial's experiment has signed its ``parameters``; a tuner of NNI's own signs nothing.

    Args:
        trial: the trial's output folder, <experiment>/environments/<environment>/trials/<trial>.

    Raises:
        StateError: that tuner signs, and did not sign these.
    """
    path = trial.parents[3] / CHECKPOINT / SECRET if len(trial.parents) > 3 else None
    if path is None or not path.exists():
        return False
    bare = {name: value for name, value in parameters.items() if name != SIGNATURE}
    if not hmac.compare_digest(str(parameters.get(SIGNATURE)), _signature(bare, path.read_text(encoding="utf-8"))):
        raise StateError(
            "these parameters are not as the experiment's tuner signed them, and are not used: somebody has changed or "
            "posted them by NNI's port; see SECURITY.md."
        )
    return True


def _signature(parameters: Mapping[str, Any], secret: str) -> str:
    canonical = json.dumps(_plain(parameters), sort_keys=True)
    return hmac.new(secret.encode(), canonical.encode(), sha256).hexdigest()


def _plain(value: Any) -> Any:
    """NNI's manager writes 1.0 as 1."""
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
