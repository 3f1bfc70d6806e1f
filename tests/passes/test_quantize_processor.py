"""Which 8-bit numbers a processor computes with, from what it says about itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from surgeon_passes.quantizing.processor import Numbers, flags_of, numbers_for


@pytest.mark.parametrize(
    ("machine", "flags", "wanted"),
    [
        ("x86_64", {"avx2", "avx512f", "avx512_vnni"}, Numbers("uint8", reduce_range=False)),
        ("AMD64", {"avx2", "avx_vnni"}, Numbers("uint8", reduce_range=False)),
        ("x86_64", {"avx2", "avx512f"}, Numbers("uint8", reduce_range=True)),
        ("x86_64", set(), Numbers("uint8", reduce_range=True)),
        ("aarch64", {"asimddp"}, Numbers("int8", reduce_range=False)),
        ("arm64", set(), Numbers("int8", reduce_range=False)),
    ],
)
def test_numbers(machine: str, flags: set[str], wanted: Numbers) -> None:
    assert numbers_for(machine, frozenset(flags)) == wanted


@pytest.mark.parametrize("label", ["flags\t\t", "Features\t"])
def test_flags_of_linux(label: str, tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor\t: 0\nmodel name\t: any\n{label}: fpu avx2 AVX512_VNNI\n\nprocessor\t: 1\n")
    assert flags_of("Linux", path) == {"fpu", "avx2", "avx512_vnni"}


def test_a_processor_that_says_nothing(tmp_path: Path) -> None:
    assert flags_of("Windows", tmp_path / "none") == frozenset()
    (tmp_path / "empty").write_text("processor: 0\n")
    assert flags_of("Linux", tmp_path / "empty") == frozenset()
