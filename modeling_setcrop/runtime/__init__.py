"""What runs the network: one interface, on torch or on onnxruntime (without importing torch or transformers).

An engine has `config` and `preprocessing` of its checkpoint, `encode(images, source)`, which returns for each prepared
image (3, H, W) an object with `prediction(image_size)`, `default_batch_size`, `workers()` and `device`.
"""
