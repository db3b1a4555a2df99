"""Checkpoints of workflows."""
