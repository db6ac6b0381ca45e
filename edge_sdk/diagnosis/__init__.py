"""What `edge-agent doctor` and `coordinator doctor` share: findings, and checks of broker, clock and Python."""
