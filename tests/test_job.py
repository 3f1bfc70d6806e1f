"""Jobs: what holds for as long as one runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx
from onnx import helper
from threadpoolctl import threadpool_info, threadpool_limits

import surgeon
from surgeon.passes import Pass
from surgeon.refit.definite import inverses

if TYPE_CHECKING:
    from surgeon.passes import Context, Graph

SEEN: list[int] = []


@dataclass(frozen=True)
class Looking(Pass):
    """Notes on how many threads linear algebra runs."""

    name: ClassVar[str] = "looking"

    def run(self, graph: Graph, context: Context) -> Graph:
        """Looks."""
        SEEN.extend(_threads())
        context.record["changed"] = True
        return graph


def _threads() -> list[int]:
    inverses(np.eye(64)[None])  # scipy's library, which is not numpy's
    np.linalg.inv(np.eye(2))
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


def _model() -> onnx.ModelProto:
    ends: list[Any] = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 4]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_linear_algebra_runs_on_one_thread_during_a_job_and_on_as_many_as_before_after_it() -> None:
    SEEN.clear()
    _threads()  # loads what is to be limited
    with threadpool_limits(2, "blas"):
        before = _threads()
        surgeon.run(_model(), [Looking()], force=True)
        after = _threads()
    assert before
    assert [1] * len(before) == SEEN
    assert [2] * len(before) == before == after
