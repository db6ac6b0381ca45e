"""What this device trusts, and for what."""
