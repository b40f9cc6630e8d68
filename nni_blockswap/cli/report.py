"""Compare classifiers judged by accuracy, of experiments: error against parameters by method, and a table.

Of detectors there is --table 4 alone.

Writes OUT/report.md and .csv, OUT/report.png (the paper's Figure 3) and OUT/trials.csv, a row a trial. With --table or
--figure it writes that instead: OUT/table_2.md and .csv, the run's figures beside the paper's; OUT/mixing.png, ...
"""

import argparse

from nni_blockswap.experiment.service import folder_of
from nni_blockswap.trust import add_allow


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "experiments",
        nargs="+",
        metavar="EXPERIMENT",
        help="an id as nnictl shows it, or a folder with results in it",
    )
    add_allow(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for table and figure")
    parser.add_argument("--table", metavar="NAME", help="one of the paper's to lay the run beside: 2, 3, 4 or C")
    parser.add_argument(
        "--figure",
        metavar="NAME",
        help="one of the paper's to draw: mixing (Figure 2), blocks (4) or placements (5)",
    )
    parser.add_argument(
        "--latency-batch",
        type=int,
        default=1,
        metavar="N",
        help="images when latency is measured (default 1; 0: do not)",
    )


def run(options: argparse.Namespace) -> int:
    """Print the table."""
    folders = [folder_of(name) for name in options.experiments]
    if options.table is not None:
        from nni_blockswap.studies.published import lay_beside

        print(lay_beside(options.table, folders, options.out))
    if options.figure is not None:
        from nni_blockswap.studies.figures import draw

        print(draw(options.figure, folders, options.out))
    if options.table is None and options.figure is None:
        from nni_blockswap.ranges import check_count
        from nni_blockswap.scoring.settings import LARGEST
        from nni_blockswap.studies.report import report

        if options.latency_batch:
            check_count("--latency-batch", options.latency_batch, LARGEST["batch_size"])
        print(report(folders, options.out, options.latency_batch or None))
    print(f"in '{options.out}'")
    return 0
