"""Hugging Face torch modules of submodels, shared by the coordinator and by devices that train on torch.

The only part of the SDK, beside the torch runtime, that imports torch: a device that trains on ONNX never loads it.
"""
