"""Draw one architecture beside its teacher, or what the best of a ranking have in common.

Of a file with an architecture: bars in the terminal, and with --out a picture. Of a folder with a ranking: a picture of
which substitutes its best tenth chose, by default FOLDER/preferences.png.
"""

import argparse
from pathlib import Path

from nni_blockswap.trust import add_allow


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("what", metavar="ARCH", help="file of an architecture, or folder of a ranking")
    add_allow(parser)
    parser.add_argument("--out", metavar="FILE", help="picture, .png or .svg")


def run(options: argparse.Namespace) -> int:
    """Draw it."""
    from nni_blockswap.architecture import Architecture
    from nni_blockswap.results.drawing import picture, preferences, text
    from nni_blockswap.results.ranking import Ranking
    from nni_blockswap.results.tables import write_figure

    what = Path(options.what)
    if what.is_dir():
        out = options.out or what / "preferences.png"
        write_figure(out, preferences(Ranking.load(what)))
        print(out)
        return 0
    one = Architecture.load(what)
    print(text(one))
    if options.out:
        write_figure(options.out, picture(one))
        print(options.out)
    return 0
