"""The platform: many replicas behind one address. Imports nothing of the runtime; its replicas are `penstock serve`
processes that it knows by their ports."""
