"""Models by name and from files: the zoo, checkpoints, conversion."""
