"""What this machine has for the fast ways to a score."""

import os
import shlex
import subprocess

import pytest


@pytest.fixture(scope="session")
def c_compiler(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The command of a C compiler that works, with its headers; skips where there is none."""
    command = os.environ.get("CC", "cc")
    source = tmp_path_factory.mktemp("compiler") / "probe.c"
    source.write_text(
        "#include <math.h>\n#include <stdlib.h>\n#include <string.h>\nfloat f(float x) { return sqrtf(x); }\n"
    )
    flags = ["-march=native", "-shared", "-fPIC", str(source), "-o", str(source.with_suffix(".so")), "-lm"]
    try:
        subprocess.run([*shlex.split(command), *flags], check=True, capture_output=True, stdin=subprocess.DEVNULL)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs a C compiler that works: {error}")
    return command
