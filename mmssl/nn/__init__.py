"""Transformer blocks, position tables and heads; nothing here knows of a modality."""
