"""What a trained network is for: predictions, ONNX files, examinations."""
