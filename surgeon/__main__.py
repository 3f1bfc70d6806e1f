"""``python -m surgeon``: the same as the ``surgeon`` command."""

import sys

from surgeon.cli import main

sys.exit(main())
