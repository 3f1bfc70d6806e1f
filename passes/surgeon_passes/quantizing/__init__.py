"""What the pass ``quantize`` is made of: preparing a model, choosing its operators, three ways to store numbers."""
