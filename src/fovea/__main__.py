"""`python -m fovea` is the command `fovea`."""

from __future__ import annotations

import sys

from fovea.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
