"""ONNX files as graphs: loading, canonical form, concrete shapes, sessions and saving."""
