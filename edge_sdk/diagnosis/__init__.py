"""What both doctors share, `edge-agent doctor` and `coordinator doctor`: the form, the way to a broker, the clock."""
