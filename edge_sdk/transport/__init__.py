"""Messages and blobs between a device and its coordinator: over MQTT, or in memory for tests; blobs also over HTTPS."""
