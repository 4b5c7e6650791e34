"""Reinforcement learning and imitation: algorithms, one file each, and what they share."""
