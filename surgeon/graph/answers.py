"""What a graph answers to inputs: onnxruntime holds it for no longer than that, and large weights stay in files."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from surgeon.errors import DataError, UnsupportedModelError
from surgeon.graph.proto import own_constants
from surgeon.graph.save import save_apart, to_model
from surgeon.graph.sessions import MANY_NODES, run, session
from surgeon.graph.weights import stored_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_graphsurgeon as gs
    import onnxruntime as ort
    from numpy.typing import NDArray

    Feeds: TypeAlias = Mapping[str, NDArray[Any]]

Answer: TypeAlias = "list[NDArray[Any]] | UnsupportedModelError | DataError"

# Bytes of weights up to which a model is handed to onnxruntime in memory, which is quicker and takes their size
# several times over; above, it is written to a file that onnxruntime maps.
HELD_IN_MEMORY = 1 << 22


def answers(
    graph: gs.Graph,
    feeds: Sequence[Feeds],
    *,
    threads: int = 1,
    optimize: bool = False,
    folder: Path | None = None,
) -> list[Answer]:
    """Runs a graph on several inputs and forgets it.

    Args:
        graph: The graph; values that are derived or stored are computed and read one at a time.
        feeds: The inputs.
        threads: Threads for onnxruntime.
        optimize: Whether onnxruntime may fuse and fold.
        folder: Where temporary files go, if they are needed and fit in there; else where the system wants them.

    Returns:
        For each of the inputs the outputs, or why the model does not run on them.

    Raises:
        UnsupportedModelError: onnxruntime cannot load the graph.
        UsageError: Temporary files cannot be written.
    """
    size, reuse = sum(map(stored_bytes, own_constants(graph))), len(graph.nodes) <= MANY_NODES
    if size <= HELD_IN_MEMORY:
        return _run(session(to_model(graph), threads=threads, optimize=optimize, reuse=reuse), feeds)
    with tempfile.TemporaryDirectory(
        prefix=".surgeon-", dir=_roomy(folder, size), ignore_cleanup_errors=True
    ) as name:
        path = Path(name) / "model.onnx"
        save_apart(graph, path)
        runner = session(path, threads=threads, optimize=optimize, frugal=True, reuse=reuse)
        with suppress(OSError):  # what is mapped can go: nothing is left even if the process is killed
            shutil.rmtree(name)
        return _run(runner, feeds)


def _run(runner: ort.InferenceSession, feeds: Sequence[Feeds]) -> list[Answer]:
    found: list[Answer] = []
    for each in feeds:
        try:
            found.append(run(runner, each))
        except (UnsupportedModelError, DataError) as error:
            found.append(error)
    return found


def _roomy(folder: Path | None, size: int) -> Path | None:
    return folder if folder is not None and shutil.disk_usage(folder).free > size else None
