"""Trained models at work: ONNX and int8 files, predictions for texts and questions."""
