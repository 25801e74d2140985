"""Use of trained networks: predictions, ONNX files, examinations."""
