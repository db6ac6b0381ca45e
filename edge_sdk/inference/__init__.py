"""Inference on a device: an engine that runs one model, and two slots for the files of models, one of them current."""
