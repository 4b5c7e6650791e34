"""Published weights in, ours out."""
