"""``python -m ksmpy``."""

from __future__ import annotations

import sys

from ksmpy.cli import main

if __name__ == "__main__":
    sys.exit(main())
