"""What lasts: wishes, revisions, experiments, statistics and decisions, in one database."""
