"""What the pass ``dequantize`` is made of: one rule per quantized operator, and the graph they write."""
