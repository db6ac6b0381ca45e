"""Rounds: what decides them, and how they are found again after a restart."""
