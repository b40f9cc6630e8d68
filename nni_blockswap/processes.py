"""Python processes that help this one, and end with it, however that comes about.

Work comes in on a helper's standard input and answers leave on its standard output. It ends where its input does.
"""

import os
import subprocess
import sys


def start_helper(module: str, threads: int = 1) -> "subprocess.Popen[bytes]":
    """A process in which ``serve(answers)`` of ``module`` runs; ``answers`` is a file descriptor to write to."""
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    # Before anything is imported standard output becomes standard error: nothing printed may come between the answers.
    program = f"import os; answers = os.dup(1); os.dup2(2, 1); from {module} import serve; serve(answers)"
    return subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(threads)},
        start_new_session=True,  # Ctrl-C is for this process
    )


def spelled_end(process: "subprocess.Popen[bytes]") -> str:
    """How a helper ended: ``was killed by signal 9``, ``ended with code 1``."""
    code = process.wait()
    return f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
