"""The process that NNI runs a tuner in: where its code lies, which GPUs it may use, and a way to reach a person."""

import base64
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil


def code_directory() -> Path:
    """The tuner's codeDirectory."""
    return Path(_config().get("tuner", {}).get("codeDirectory") or ".")


def max_trials() -> int | None:
    """The experiment's maxTrialNumber when this process began."""
    found: int | None = _config().get("maxTrialNumber")
    return found


def manager_port() -> int | None:
    """Of the NNI manager that started this process; None where there is none."""
    return urlsplit(os.environ.get("NNI_TUNER_COMMAND_CHANNEL", "")).port


def _config() -> dict[str, Any]:
    """The experiment's config: NNI passes it on the dispatcher's command line."""
    for option, value in zip(sys.argv, sys.argv[1:], strict=False):
        if option == "--exp_params":
            found: dict[str, Any] = json.loads(base64.b64decode(value))
            return found
    return {}


def share_cores() -> None:
    """Let OpenMP's threads sleep while they wait: spinning, they slow down the search tenfold where cores are shared.

    Has to be said before torch is imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def restore_gpus() -> None:
    """Let the search see the GPUs that NNI's manager sees: NNI hides them from a tuner unless tunerGpuIndices is set.

    Takes CUDA_VISIBLE_DEVICES from the process that started the dispatcher, so that a choice made in the shell holds.
    """
    if os.environ.get("SDK_PROCESS") != "dispatcher" or os.environ.get("CUDA_VISIBLE_DEVICES") != "":
        return
    with suppress(psutil.Error):
        above = [parent.environ() for parent in psutil.Process().parents()[:3]]  # a shell or two, then the manager
        manager: dict[str, str] = next((one for one in above if one.get("SDK_PROCESS") != "dispatcher"), {})
        del os.environ["CUDA_VISIBLE_DEVICES"]
        if "CUDA_VISIBLE_DEVICES" in manager:
            os.environ["CUDA_VISIBLE_DEVICES"] = manager["CUDA_VISIBLE_DEVICES"]


def release_gpu() -> None:
    """Give back the search's GPU memory: the tuner lives on while the trials train."""
    import torch

    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


def tell(sentence: str) -> None:
    """Say it on the terminal of whoever started the experiment, also where ``nnictl create`` has returned already.

    NNI's processes keep that terminal; what they print goes to nnictl_stderr.log there.
    """
    print(f"BlockSwap: {sentence}", file=sys.stderr, flush=True)  # noqa: T201  # the terminal of --foreground
    if not sys.stderr.isatty():
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})  # `stty tostop` would stop this process
        with suppress(OSError), open("/dev/tty", "w") as terminal:
            terminal.write(f"\r\nBlockSwap: {sentence}\r\n")
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
