"""``python -m nni_blockswap`` is the command ``blockswap``."""

import sys

from nni_blockswap.cli import main

sys.exit(main())
