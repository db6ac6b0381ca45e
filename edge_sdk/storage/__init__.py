"""What a device keeps on disk besides blobs: the outbox, and a few numbers that must outlive a restart."""
