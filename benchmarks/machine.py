"""What the benchmarks say of the machine, and results files with a section a device."""

import os
import platform
from pathlib import Path

import torch

from nni_blockswap.files import write_text

OPEN = {"## CPU": "Open.\n", "## GPU": "Open: no GPU was at hand.\n"}


def processor() -> str:
    """Its name, and whether it multiplies bfloat16 natively."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    native = "with" if any("avx512_bf16" in line for line in lines) else "without"
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, {native} AVX512-BF16"


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def write_section(path: Path, header: str, section: str) -> None:
    """Replace the section with the heading of ``section``, ## CPU or ## GPU, and leave the other."""
    text = path.read_text() if path.exists() else ""
    found = dict.fromkeys(OPEN, "")
    for part in ("\n" + text).split("\n## ")[1:]:
        found[f"## {part.splitlines()[0]}"] = f"## {part.rstrip()}\n"
    found[section.splitlines()[0]] = section
    parts = [found[heading] or f"{heading}\n\n{content}" for heading, content in OPEN.items()]
    write_text(path, header + "\n".join(parts))
    print(path.read_text())
