"""Where and how fast a network is trained."""

from dataclasses import dataclass
from typing import Any

import torch

from nni_blockswap.errors import ConfigError, shown

PRECISIONS = ("auto", "32-true", "16-mixed", "bf16-mixed")
"""Lightning's, as far as weights stay in float32: a step of SGD is often too small to change a bfloat16."""

MOST_PROCESSES, MOST_STEPS = 1024, 10**12
"""More than any machine has, and than anybody waits for."""


def training_device() -> torch.device:
    """Where one process trains: a GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Machine:
    """Devices of this machine, arithmetic, processes that read data, at most how many steps an epoch."""

    devices: str = "1"
    precision: str = "auto"
    workers: int = 0
    limit_steps: int | None = None

    def __post_init__(self) -> None:
        is_number = self.devices.isdecimal() and len(self.devices) < 10 and 1 <= int(self.devices) <= MOST_PROCESSES
        if self.devices != "auto" and not is_number:
            raise ConfigError(
                f"--devices is a number of devices or 'auto', not '{self.devices}'; {MOST_PROCESSES:,} is the most."
            )
        if self.precision not in PRECISIONS:
            raise ConfigError(f"--precision is one of {', '.join(PRECISIONS)}, not '{self.precision}'.")
        if self.workers < 0:
            raise ConfigError(f"--workers must not be negative, as {shown(self.workers)} is.")
        if self.workers > MOST_PROCESSES:
            raise ConfigError(f"--workers is at most {MOST_PROCESSES:,}, not {shown(self.workers)}.")
        if self.limit_steps is not None and not 1 <= self.limit_steps <= MOST_STEPS:
            raise ConfigError(
                f"--limit-steps must be above 0, not {shown(self.limit_steps)}, and at most {MOST_STEPS:,}; leave it "
                "out for no limit."
            )

    @property
    def device_count(self) -> Any:
        """As Lightning takes it."""
        return self.devices if self.devices == "auto" else int(self.devices)

    @property
    def arithmetic(self) -> Any:
        """Lightning's precision: bfloat16 on a GPU that has it, unless one was asked for."""
        if self.precision != "auto":
            return self.precision
        capable = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16-mixed" if capable else "32-true"
