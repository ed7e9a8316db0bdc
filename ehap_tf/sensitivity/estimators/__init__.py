"""Traces and products of curvature, exact or from random vectors."""
