"""Integer files: their error, size and speed."""
