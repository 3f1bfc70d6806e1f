"""Cutting with a proof; where the proof fails, finding the groups to leave alone instead."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from surgeon.errors import GateError, InternalError
from surgeon.isolate import unprovable
from surgeon.verify import Certificate, prove

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from surgeon.engine import Model
    from surgeon.passes import Context, Graph
    from surgeon.plan import Plan


@dataclass(frozen=True)
class Proved:
    """A cut that was proved."""

    graph: Graph
    plan: Plan
    certificate: Certificate


def cut_and_prove(
    model: Model, kept: Mapping[str, NDArray[np.bool_]], context: Context
) -> Proved | dict[str, str]:
    """Cut and prove; if the proof fails, return the groups it fails for and why.

    Raises:
        GateError: The proof fails, and not because of some of the groups.
    """
    feeds = [next(iter(context.data))[0]] if context.data is not None else []

    def attempt(part: Mapping[str, NDArray[np.bool_]]) -> Proved:
        smaller, plan = model.cut(part, context.model_sha256)
        started = time.perf_counter()
        structural = any(group.structural for group in model.groups if group.id in part)
        try:
            certificate = prove(
                model.analysis,
                smaller,
                plan.tensors,
                structural=structural,
                feeds=feeds,
                threads=context.threads,
                interface=plan.interface,
                folder=context.scratch,
            )
        finally:
            spent: Any = context.record.get("proof_seconds", 0.0)
            context.record["proof_seconds"] = spent + time.perf_counter() - started
        return Proved(smaller, plan, certificate)

    try:
        return attempt(kept)
    except (GateError, InternalError) as error:
        blamed = unprovable(kept, attempt)
        if not blamed:
            raise
        context.warn(
            f"the proof fails for {len(blamed)} of {len(kept)} groups, which stay whole: {error.message}"
        )
        context.record["unproved"] = {**dict(context.record.get("unproved", {})), **blamed}  # type: ignore[call-overload]  # ours
        return {name: f"its cut could not be proved: {why}" for name, why in blamed.items()}
