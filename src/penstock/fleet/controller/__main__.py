"""`python -m penstock.fleet.controller`: the supervisor starts it; it can run alone too."""

from __future__ import annotations

import sys

from penstock.fleet.controller.main import main

if __name__ == "__main__":
    sys.exit(main())
