"""`python -m penstock.fleet.router`."""

from penstock.fleet.router.main import main

raise SystemExit(main())
