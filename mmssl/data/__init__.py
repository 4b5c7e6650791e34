"""Datasets, transforms and loading."""
