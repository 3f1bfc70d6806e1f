"""What the pass ``quantize`` is made of: preparing a model, choosing its operators, ways to store numbers."""
