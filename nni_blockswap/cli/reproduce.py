"""Run the experiments of a plan without NNI, one after the other, and write a page of all tables and figures.

Writes OUT/index.html, and below OUT/SCALE each experiment's trials and each section's files. The same command goes on
where it was stopped.
"""

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("plan", metavar="PLAN", help="as in reproduce.yml")
    parser.add_argument("--scale", required=True, metavar="NAME", help="one of the plan's: tiny, short, paper")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for page, trials and sections")


def run(options: argparse.Namespace) -> int:
    """Reproduce; faults at the end."""
    from nni_blockswap.cli.search import SearchLine
    from nni_blockswap.experiment.plan import Plan
    from nni_blockswap.experiment.reproduction import PAGE, reproduce

    out = Path(options.out)
    with SearchLine() as shown:
        faults = reproduce(Plan(Path(options.plan)), options.scale, out, shown, lambda text: print(text, flush=True))
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"{out / PAGE}")
    return 1 if faults else 0
