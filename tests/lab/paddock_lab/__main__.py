"""Entry point of `tests/lab/run`."""

import sys

from paddock_lab.cli import main

sys.exit(main(sys.argv[1:]))
