"""What the pass ``factorize`` did, as a report says it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from surgeon.passes import Context
    from surgeon.refit.settle import Settled
    from surgeon_passes.factorizing.curves import Curves, Way
    from surgeon_passes.factorizing.splits import Divisible


def describe(
    work: Sequence[Divisible],
    taken: Mapping[str, Way],
    curves: Curves,
    settled: Settled,
    context: Context,
) -> None:
    """Put it into the report, operator by operator.

    Args:
        work: What can be split.
        taken: What became of each, by its first output.
        curves: What could have become of them, what their errors counted, and why others stay whole.
        settled: What the refit did.
        context: Of the run.
    """
    split, left = [], dict(curves.left)
    for each in work:
        way = taken.get(each.view.op.node.outputs[0].name)
        if way is None:
            continue
        if way.split is None:
            left[each.label] = "others lose less for what they save"
            continue
        before, after = settled.errors.get(each.label, (None, None))
        split.append(
            {
                "node": each.label,
                "operator": each.view.op.node.op,
                "kind": way.split.kind,
                "split": way.split.words,
                "rank": way.rank,
                "full_rank": each.full_rank(way.split),
                "macs_before": each.macs,
                "macs_after": way.macs,
                "error": way.error,
                "weight": curves.weights[each.view.op.node.outputs[0].name],
                "error_before": before,
                "error_after": after,
            }
        )
    inside = {entry["node"] for entry in split}
    context.record["split"] = split
    context.record["left"] = [
        {"node": name, "reason": why} for name, why in left.items() if name not in inside
    ]
    context.record["refit"] = {
        "operators": [
            {"node": name, "error_before": before, "error_after": after}
            for name, (before, after) in settled.errors.items()
            if name not in inside
        ],
        "left": [{"node": name, "reason": why} for name, why in settled.left.items()],
    }
    context.record["changed"] = bool(split)
    if settled.spilled:
        context.warn(
            "activations took more than factorize.memory and went to temporary files, which takes longer; "
            "fewer samples or more memory avoid it"
        )
