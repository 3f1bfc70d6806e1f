"""What models and their weights take: bytes, also compressed, numbers that are not zero, and different values."""

from surgeon.sizes.weights import TensorSize, WeightSizes, of_weights, weigh

__all__ = ["TensorSize", "WeightSizes", "of_weights", "weigh"]
