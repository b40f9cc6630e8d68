"""Compare the trials of experiments: error against parameters by method, and a table with MACs and latency.

Writes OUT/report.md and .csv, OUT/report.png (the paper's Figure 3) and OUT/trials.csv, a row a trial.
"""

import argparse
from pathlib import Path

from nni_blockswap.experiment.service import folder_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "experiments", nargs="+", metavar="EXPERIMENT_ID", help="as nnictl shows it, or a folder with results below it"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for table and figure")
    parser.add_argument(
        "--latency-batch",
        type=int,
        default=1,
        metavar="N",
        help="images when latency is measured (default 1; 0: do not)",
    )


def run(options: argparse.Namespace) -> int:
    """Print the table."""
    from nni_blockswap.studies.report import report

    folders = [Path(name) if Path(name).is_dir() else folder_of(name) for name in options.experiments]
    print(report(folders, options.out, options.latency_batch or None))
    print(f"in '{options.out}'")
    return 0
