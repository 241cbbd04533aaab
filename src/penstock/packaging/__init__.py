"""Models as files that travel: archives, and what they may not do when they are opened."""
