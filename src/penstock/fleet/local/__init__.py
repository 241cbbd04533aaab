"""What the local driver is made of: replicas as processes of this machine.

- `command.py` says what a replica is started with, `variables.py` with which environment.
- `process.py` starts one, knows it again, and ends it with all that it started; `groups.py` sets its limits.
- `record.py` is what a later controller reads; `output.py` is the log that replicas write and people read.
- `environments.py` builds Python environments out of locked requirements, `overlay.py` puts penstock into them.
- `leftovers.py` ends all replicas of a folder when no controller is there to do it.
- `contents.py` unpacks archives; `disused.py` takes away what nobody uses any more.
- `pages.py` keeps the files of sleeping deployments in memory.
"""
