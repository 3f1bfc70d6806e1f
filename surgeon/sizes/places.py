"""Where operators hold their weights, and what stands for zero in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class Place:
    """An input that is a weight where it is constant.

    Attributes:
        weight: The number of the input.
        zero: The input with the zero points, where the operator reads integers; it may be left out.
        axis: The axis of the weight along which there may be several zero points.
        integers: Whether the operator reads integers.
    """

    weight: int
    zero: int | None = None
    axis: int = 0
    integers: bool = False


_CONVOLUTION = (Place(1),)
_PRODUCT = (Place(0), Place(1))
_RECURRENT = (Place(1), Place(2))

# by domain and operator; operators on integers are those that quantizers make of the others
PLACES: Mapping[tuple[str, str], tuple[Place, ...]] = {
    **{("", name): _CONVOLUTION for name in ("Conv", "ConvTranspose")},
    **{("", name): _PRODUCT for name in ("Gemm", "MatMul")},
    **{("", name): _RECURRENT for name in ("LSTM", "GRU", "RNN")},
    ("", "ConvInteger"): (Place(1, 3, integers=True),),
    ("", "MatMulInteger"): (Place(0, 2, -2, integers=True), Place(1, 3, -1, integers=True)),
    ("", "QLinearConv"): (Place(3, 5, integers=True),),
    ("", "QLinearMatMul"): (Place(0, 2, -2, integers=True), Place(3, 5, -1, integers=True)),
    **{(MICROSOFT, name): _CONVOLUTION for name in ("FusedConv", "NhwcConv", "NhwcFusedConv")},
    **{(MICROSOFT, name): _PRODUCT for name in ("FusedGemm", "FusedMatMul")},
    (MICROSOFT, "QLinearConv"): (Place(3, 5, integers=True),),
    (MICROSOFT, "QGemm"): (Place(0, 2, -2, integers=True), Place(3, 5, -1, integers=True)),
    (MICROSOFT, "MatMulInteger16"): (Place(0, integers=True), Place(1, integers=True)),
    (MICROSOFT, "MatMulIntegerToFloat"): (
        Place(0, 4, -2, integers=True),
        Place(1, 5, -1, integers=True),
    ),
    (MICROSOFT, "DynamicQuantizeMatMul"): (Place(1, 3, -1, integers=True),),
    (MICROSOFT, "DynamicQuantizeLSTM"): (Place(1, 9, -1, integers=True), Place(2, 11, -1, integers=True)),
}
NBITS = (MICROSOFT, "MatMulNBits")  # whose weight is packed in blocks
