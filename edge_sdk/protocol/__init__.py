"""The contract between devices and the coordinator: message types, topics, blobs, tensors, signatures. No I/O."""
