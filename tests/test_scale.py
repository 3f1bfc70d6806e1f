"""Memory stays near the size of the model, and work grows with the number of nodes and no faster."""

from __future__ import annotations

import gc
import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import numpy as np
import onnx
import pytest
from large_models import FAMILIES, stack

from surgeon.engine import analyse
from surgeon.graph import answers, weights
from surgeon.graph import load as loading
from surgeon.graph.load import load
from surgeon.graph.proto import own_constants
from surgeon.graph.save import to_model
from surgeon.graph.weights import UnreadValues
from surgeon.measure import figures
from surgeon.passes import Context
from surgeon.plugins import load_rules
from surgeon_passes.clean import Clean
from surgeon_passes.prune import Prune
from surgeon_passes.pruning.choose import choose
from surgeon_passes.pruning.rank import Ranking

STATUS = Path("/proc/self/status")
PEAK = """
import sys
from pathlib import Path
def peak():
    return next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line).split()[1]
"""
RUN = """
from surgeon.cli import main
try:
    main()
finally:
    print(peak(), file=sys.stderr)
"""
IDLE = """
import scipy.linalg, surgeon.job, surgeon.engine, surgeon.verify, surgeon_passes.prune
print(peak(), file=sys.stderr)
"""


def peak_of(program: str, *arguments: object) -> int:
    """The largest resident memory of a fresh process, in bytes."""
    command = [sys.executable, "-c", PEAK + program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stderr.strip().splitlines()[-1]) * 1024


@pytest.mark.skipif(not STATUS.exists(), reason="needs Linux to know how much memory a process took")
@pytest.mark.parametrize("outside", [True, False], ids=["external data", "one file"])
def test_a_cut_takes_the_memory_of_the_model_once(tmp_path: Path, outside: bool) -> None:
    size = stack(tmp_path / "m.onnx", layers=25, outside=outside)
    arguments = ("run", tmp_path / "m.onnx", "-o", tmp_path / "o.onnx", "--passes", "prune")
    taken = peak_of(RUN, *arguments, "--set", "prune.ratio=0.25", "--json") - peak_of(IDLE)
    assert taken <= 1.4 * size
    written = sum(path.stat().st_size for path in tmp_path.glob("o.onnx*"))
    assert written < 0.6 * size
    assert not list(tmp_path.glob(".surgeon*"))


@pytest.fixture
def everything_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small models are treated as large ones are."""
    monkeypatch.setattr(loading, "LARGE_FILE", 0)
    monkeypatch.setattr(weights, "LARGE", 0)
    monkeypatch.setattr(answers, "HELD_IN_MEMORY", 0)


def pruned(path: Path, output: Path) -> bytes:
    import surgeon

    surgeon.run(path, "prune{ratio=0.5}", destination=output)
    return output.read_bytes()


@pytest.mark.parametrize("family", ["chain", "halves", "attention"])
def test_the_way_of_large_models_gives_the_same_bytes(tmp_path: Path, family: str, request) -> None:
    path = FAMILIES[family][0](tmp_path / "m.onnx", 3)
    simple = pruned(path, tmp_path / "a.onnx")
    request.getfixturevalue("everything_large")
    assert hashlib.sha256(pruned(path, tmp_path / "b.onnx")).digest() == hashlib.sha256(simple).digest()


@pytest.mark.usefixtures("everything_large")
def test_a_cut_graph_holds_no_weights(tmp_path: Path) -> None:
    stack(tmp_path / "m.onnx", layers=3, width=64)
    model = analyse(load(tmp_path / "m.onnx"))
    smaller, _ = model.cut({group.id: np.arange(group.size) % 2 == 0 for group in model.groups})
    constants = own_constants(smaller)
    assert len(constants) == 3
    assert all(isinstance(constant._values, UnreadValues) for constant in constants)


@pytest.mark.usefixtures("everything_large")
def test_a_folded_normalization_is_not_held(tmp_path: Path) -> None:
    text = (
        "g (float[N,3,4,4] x) => (float[N,8,4,4] y) { c = Conv(x, w)  y = BatchNormalization(c, s, b, m, v) }"
    )
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    vectors = {name: np.linspace(1, 2, 8, dtype=np.float32) for name in "sbmv"}
    arrays = {"w": np.ones((8, 3, 1, 1), np.float32), **vectors}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in arrays.items())
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    graph = Clean().run(load(tmp_path / "m.onnx"), Context(tmp_path / "m.onnx"))
    assert [node.op for node in graph.nodes] == ["Conv"]
    assert isinstance(graph.nodes[0].inputs[1]._values, UnreadValues)


def calls(work: Callable[[], object]) -> int:
    """How many functions are called, which does not depend on how busy the machine is."""
    count = 0

    def note(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    gc.disable()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count


def transform(path: Path) -> None:
    """Everything between the file and onnxruntime."""
    context = Context(path)
    graph = load(path)
    figures(graph, 1)
    model = analyse(Clean().run(graph, context))
    options = Prune(ratio=0.5)
    choice = choose(options, model, context, Ranking(options, model, context), None, {})
    smaller, plan = model.cut({name: flags for name, flags in choice.kept.items() if not flags.all()})
    plan.to_json()
    to_model(smaller)


@pytest.mark.parametrize("family", FAMILIES)
def test_work_grows_with_the_number_of_nodes_and_no_faster(tmp_path: Path, family: str) -> None:
    load_rules(lambda _: None)
    write, per_block = FAMILIES[family]
    paths = [write(tmp_path / f"{nodes}.onnx", nodes // per_block) for nodes in (60, 240, 960)]
    transform(paths[0])  # what is done once per process
    small, large = (calls(lambda path=path: transform(path)) for path in paths[1:])
    assert large <= 4.6 * small


@pytest.mark.usefixtures("everything_large")
def test_a_model_given_in_memory_is_whole_when_its_temporary_file_is_gone(tmp_path: Path) -> None:
    import surgeon

    path = FAMILIES["chain"][0](tmp_path / "m.onnx", 3)
    result = surgeon.run(onnx.load(path), "prune{ratio=0.5}")
    assert len(to_model(result.graph).graph.initializer) == len(own_constants(result.graph))
