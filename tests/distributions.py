"""Builds installed distributions in a folder, the way pip would lay them out, without the network."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path


def install(project: Path, folder: Path) -> Path:
    """Copies a project's packages into ``folder`` and writes its metadata and entry points beside them."""
    described = tomllib.loads((project / "pyproject.toml").read_text())
    for package in described["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        shutil.copytree(project / package, folder / Path(package).name, dirs_exist_ok=True)
    about = described["project"]
    return announce(folder, about["name"], about["entry-points"], about["version"])


def announce(
    folder: Path, name: str, entry_points: dict[str, dict[str, str]], version: str = "0.0.1"
) -> Path:
    """Writes a ``dist-info`` that announces entry points."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = []
    for group, entries in entry_points.items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in entries.items()), ""]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return folder
