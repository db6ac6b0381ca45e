"""What a device keeps on disk: cached blobs, the outbox with a few numbers, and residuals of encodings."""
