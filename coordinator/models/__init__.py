"""The torch side of the coordinator: load a foundation model, order it by salience, compile it, evaluate it.

Torch loads models and compiles templates. Everything after that, gradients for salience included, runs the compiled
graphs on onnxruntime with numpy arrays.
"""
