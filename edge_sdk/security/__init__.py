"""What this device trusts and for what, its own identity, and its secrets."""
