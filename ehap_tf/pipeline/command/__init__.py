"""The command: settings, stages, the run directory."""
