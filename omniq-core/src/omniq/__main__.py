"""``python -m omniq``: the command line where the script ``omniq`` is not on the path."""

from __future__ import annotations

import sys

from omniq.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main())
