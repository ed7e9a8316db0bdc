"""Pruning inside of somebody's training."""
