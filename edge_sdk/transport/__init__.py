"""Messages and blobs between a device and its coordinator: MQTT for real, memory for tests, one exchange for both."""
