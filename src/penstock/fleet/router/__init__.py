"""Stands between callers and replicas."""
