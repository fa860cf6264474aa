"""Training and serving of ONNX models with the stock onnxruntime, which only `session` imports."""
