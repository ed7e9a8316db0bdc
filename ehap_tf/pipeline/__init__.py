"""The stages of a compression run, the run directory, and resuming."""
