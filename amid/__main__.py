"""`python -m amid` is the `amid` command."""

import sys

from amid.cli import main

sys.exit(main())
