"""`python -m amid` is the `amid` command."""

import sys

from amid.cli.main import main

sys.exit(main())
