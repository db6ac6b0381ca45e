"""Inference on a device: an engine for one model, and two slots for files, of which one is current."""
