"""What the report says, measured on the stored bytes of original and result in ONNX Runtime."""
