"""What models and their weights take: bytes, also compressed, numbers that are not zero, and different values."""

from surgeon.sizes.files import FileSizes, files_of, measure_files
from surgeon.sizes.model import ModelSize
from surgeon.sizes.weights import TensorSize, WeightSizes, of_weights, weigh

__all__ = [
    "FileSizes",
    "ModelSize",
    "TensorSize",
    "WeightSizes",
    "files_of",
    "measure_files",
    "of_weights",
    "weigh",
]
