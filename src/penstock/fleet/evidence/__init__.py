"""Statistics that say when a difference is one: anytime-valid tests, and what another policy would have earned."""
