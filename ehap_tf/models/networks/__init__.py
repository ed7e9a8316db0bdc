"""The networks that have a name."""
