"""Submodels as torch modules of Hugging Face, for the coordinator and for devices that train on torch.

Apart from the torch runtime, only this package imports torch: a device that trains on ONNX never loads it.
"""
