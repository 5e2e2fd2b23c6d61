"""`python -m dummyforcing` is the command line."""

import sys

from dummyforcing.cli import main

sys.exit(main())
