"""Judges of a frozen or fine-tuned encoder, one file each."""
