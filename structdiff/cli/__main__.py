"""``python -m structdiff.cli`` is ``structdiff``."""

import sys

from structdiff.cli import main

sys.exit(main())
