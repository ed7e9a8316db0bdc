"""The file: what it computes, written, checked and run."""
