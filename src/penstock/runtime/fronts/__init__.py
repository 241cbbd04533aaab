"""More front processes on one port (`fronts = N`): they parse, decode and encode; the engine's process owns the rest.

One link (a Unix stream socket made before the process starts) joins each front to the engine. `wire` says what crosses
it, `remote` is the door inside a front, `gate` the other end in the engine's process, `supervisor` starts fronts and
replaces dead ones, `main` is what a front process runs.
"""
