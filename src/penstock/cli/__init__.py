"""The command line: `penstock serve`, `config`, `models`, `predict`, `bench`, `version`. Each command is one module,
imported only when it is called, so that the quick ones stay quick."""

from __future__ import annotations

from penstock.cli.app import main

__all__ = ["main"]
