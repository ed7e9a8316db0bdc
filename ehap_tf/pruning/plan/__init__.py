"""What is to be removed: decided, as data."""
