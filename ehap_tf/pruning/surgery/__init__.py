"""Models without what was removed."""
