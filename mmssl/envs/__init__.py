"""Gymnasium worlds, rendering and visual randomisation."""
