"""Steps over micro-batches and devices."""
