"""In what precision an engine really computes: its layers joined with those of the network that it was built from."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from .examine import ENOUGH, MOVES, NAMES, WANTED, compute_layers, share_of
from .stored import COMPUTES, OPAQUE, Stored, own_type, uses_tf32, weigh

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .asked import Asked
    from .trt import Layer
    from .trt.inspect import EngineLayer, Inspection

# Engine layers that move or convert values and compute with none.
ENGINE_MOVES = frozenset(
    {"Constant", "Identity", "MyelinReformat", "NoOp", "Reformat", "ShapeHostToDevice", "Shuffle", "signal", "wait"}
)
MULTIPLIES = re.compile(r"conv|gemm|matrix|matmul|mha|attention|einsum|fullyconnected", re.IGNORECASE)
# Names stand between these inside a fused name: `A + B`, `PWN(PWN(A), B)`, `A || B`.
BEFORE, AFTER = frozenset(" (,|"), frozenset(" ),|")


class Wish(NamedTuple):
    """What the engine was to be.

    `allowed` nodes may compute in FP32; those of them in `must` lose what they were kept for if they do not. `size` is
    the engine file's, None where it does not hold the weights; with `padded` it holds other large things, too.
    """

    precision: str
    allowed: frozenset[str]
    must: frozenset[str]
    size: int | None
    padded: bool = False


class Placed(NamedTuple):
    """A layer of the network, the engine layer that computes it, and the type that it computes in there.

    `basis` says how the type is known: io, weights, tactic, region-io, engine-size, or none for OPAQUE.
    """

    layer: Layer
    engine: EngineLayer | None
    type: str
    basis: str


class Verdict(NamedTuple):
    """What the examine stage reports, and the slug of the reason why it fails; empty where it does not."""

    data: dict[str, Any]
    reason: str


def judge(layers: list[Layer], inspection: Inspection, asked: Asked, wish: Wish) -> Verdict:
    """Judge an engine; `asked` is the lowered graph that it was built from, `layers` TensorRT's network of that."""
    everything = place(layers, inspection, asked)
    computing = {id(layer) for layer in compute_layers(layers)}
    wanted = WANTED[wish.precision]
    chosen = [item for layer, item in zip(layers, everything) if id(layer) in computing]
    found, stored = settle(chosen, inspection, asked, wish)
    kept = [item for item in found if item.layer.node in wish.allowed] if wanted != "FLOAT" else []
    lost = [item for item in everything if _is_lost(item, wish)] if wanted != "FLOAT" else []
    in_fp32 = [item for item in found if item.type == "FLOAT" and item not in kept] if wanted != "FLOAT" else []
    # the lowered graph of INT8 is FP32, and TensorRT free to take what is fastest
    free = wish.precision == "int8"
    mistaken = [] if free else [item for item in in_fp32 if asked.types.get(item.layer.node) == "FLOAT"]
    in_fp16 = [item for item in found if free and item.type == "HALF"]
    too_little = _none_seen(found, wanted) if free else _too_little(found, kept, wanted)
    fails = wanted != "FLOAT" and (bool(mistaken) or too_little)
    must_lost = [item for item in lost if item.layer.node in wish.must]
    share = share_of([item.layer for item in found if item.type == wanted], [item.layer for item in found])
    opaque = [item for item in found if item.type == OPAQUE]
    data = {
        "source": "inspector",
        "requested": wish.precision,
        "realised": _realised(found, wanted, wish.precision),
        "layers": len(inspection.layers),
        "network_layers": len(layers),
        "by_type": dict(Counter(own_type(layer).type for layer in inspection.layers)),
        "by_kind": _by_kind(found, asked, wish),
        "compute_layers": len(found),
        "compute_in_requested": sum(item.type == wanted for item in found),
        "share": share.value,
        "share_basis": share.basis,
        "opaque_share": share_of([item.layer for item in opaque], [item.layer for item in found]).value,
        "kept_fp32": [item.layer.name for item in kept if item.type == "FLOAT"],
        "silent_fp32": [item.layer.name for item in (in_fp32 if fails and not free else mistaken)],
        "chosen_fp32": [item.layer.name for item in in_fp32 if free or (not fails and item not in mistaken)],
        "chosen_fp16": [item.layer.name for item in in_fp16],
        "lost_fp32": _nodes(must_lost),
        "relaxed_fp32": _nodes(item for item in lost if item not in must_lost),
        "other_types": [
            {"layer": item.layer.name, "type": item.type}
            for item in found
            if item.type not in (wanted, "FLOAT", OPAQUE) and item not in in_fp16
        ],
        "opaque": [{"layer": item.layer.name, "in": item.engine.name if item.engine else None} for item in opaque],
        "tf32_layers": [item.layer.name for item in found if item.engine is not None and uses_tf32(item.engine.tactic)],
        "evidence": {"basis": dict(Counter(item.basis for item in found)), **stored._asdict()},
    }
    lost_reason = "precision-lost-fp32" if must_lost else ""
    return Verdict(data, "precision-silent-fp32" if fails else lost_reason)


def place(layers: list[Layer], inspection: Inspection, asked: Asked) -> list[Placed]:
    """Find the engine layer of each network layer: by ONNX node, else by name, else by the region that it lies in."""
    visible = [layer for layer in inspection.layers if layer.region is None and layer.kind not in ENGINE_MOVES]
    by_node: dict[str, list[EngineLayer]] = {}
    for engine in visible:
        for node in engine.nodes:
            by_node.setdefault(node, []).append(engine)
    regions = _regions(layers, inspection)
    placed = []
    for index, layer in enumerate(layers):
        own = layer._replace(node=layer.node or (layer.name if layer.name in asked.ops else ""))
        candidates = by_node.get(own.node) or [engine for engine in visible if _contains(engine.name, layer.name)]
        if candidates:
            best = max(candidates, key=lambda engine: _fit(engine, own))
            placed.append(Placed(own, best, *own_type(best)))
        else:
            placed.append(Placed(own, _around(regions, index), OPAQUE, "none"))
    return placed


def settle(found: list[Placed], inspection: Inspection, asked: Asked, wish: Wish) -> tuple[list[Placed], Stored]:
    """Decide what the inspector leaves open, from what a region reads and writes and from the size of the file."""
    hidden = {item.layer.name for item in found if item.type == OPAQUE}
    borders = {layer.name: _border(layer, inspection, wish) for layer in inspection.layers if layer.region}
    seen = [
        item._replace(type=borders[item.engine.name], basis="region-io")
        if item.engine is not None and borders.get(item.engine.name, OPAQUE) != OPAQUE
        else item
        for item in found
    ]
    # A kept node inside a region of low precision may well be in FP32 in there: nothing shows it.
    seen = [
        item._replace(type=OPAQUE, basis="none")
        if item.layer.name in hidden and item.layer.node in wish.allowed and item.type != "FLOAT"
        else item
        for item in seen
    ]
    if WANTED[wish.precision] == "FLOAT":
        # no flag of the build and no type of the graph allows less: there is nothing that a region could hide
        hiding = [item for item in seen if item.type == OPAQUE]
        nothing = Stored("not asked", wish.size, None, None, "the build allows no low precision")
        return _say(seen, hiding, "FLOAT", "flags"), nothing
    judged = [item for item in seen if item.layer.name in hidden and item.layer.node not in wish.allowed]
    stored = weigh(asked, _types(seen, judged), _ids(judged), wish.size, padded=wish.padded)
    if stored.weights == "fp32":
        return _say(seen, judged, "FLOAT", "engine-size"), stored
    wanted = WANTED[wish.precision]
    doubtful = [item for item in judged if item.type != wanted]
    # weights that fit in no FP32 may be FP16 as well as INT8: of INT8 the size proves nothing
    if not doubtful or wish.precision == "int8":
        return seen, stored
    stored = weigh(asked, _types(seen, doubtful), _ids(doubtful), wish.size, padded=wish.padded)
    return (_say(seen, doubtful, wanted, "engine-size") if stored.weights == "low" else seen), stored


def _say(items: list[Placed], which: list[Placed], kind: str, basis: str) -> list[Placed]:
    names = {item.layer.name for item in which}
    return [item._replace(type=kind, basis=basis) if item.layer.name in names else item for item in items]


def _types(items: list[Placed], without: list[Placed]) -> dict[str, str]:
    names = {item.layer.name for item in without}
    return {item.layer.node: item.type for item in items if item.layer.name not in names and item.type != OPAQUE}


def _ids(items: list[Placed]) -> list[str]:
    return [item.layer.node for item in items]


def _border(region: EngineLayer, inspection: Inspection, wish: Wish) -> str:
    """Return the one float type of what a region exchanges with its neighbours, OPAQUE where there are several.

    The engine's own inputs and outputs are FP32 whatever the precision, so in low precision they say nothing.
    """
    outer = set(inspection.tensors) if WANTED[wish.precision] != "FLOAT" else set()
    tensors = [*zip(region.reads, region.inputs), *zip(region.makes, region.outputs)]
    types = {kind for name, kind in tensors if name not in outer and (kind in COMPUTES or kind == "UNKNOWN")}
    return types.pop() if len(types) == 1 and types <= COMPUTES else OPAQUE


def _regions(layers: list[Layer], inspection: Inspection) -> list[tuple[int, int, EngineLayer]]:
    at = {layer.name: index for index, layer in enumerate(layers)}
    found = []
    for engine in inspection.layers:
        if engine.region is not None:
            first, last = (_indices(text, at) for text in engine.region)
            found.append((min(first, default=0), max(last, default=len(layers)), engine))
    return found


def _indices(text: str, at: dict[str, int]) -> list[int]:
    # an end of a region can be a fused name itself
    return [at[text]] if text in at else [index for name, index in at.items() if _contains(text, name)]


def _around(regions: list[tuple[int, int, EngineLayer]], index: int) -> EngineLayer | None:
    """Return the region that ends soonest after a layer: many begin with a weight, far up in the network."""
    inside = [(last, -first, number) for number, (first, last, _) in enumerate(regions) if first <= index <= last]
    return regions[min(inside)[2]][2] if inside else None


def _contains(text: str, name: str) -> bool:
    start = text.find(name) if name else -1
    while start >= 0:
        end = start + len(name)
        if (start == 0 or text[start - 1] in BEFORE) and (end == len(text) or text[end] in AFTER):
            return True
        start = text.find(name, start + 1)
    return False


def _fit(engine: EngineLayer, layer: Layer) -> tuple[bool, bool, bool]:
    # one node can be spread over several kernels: those that multiply count for a layer that multiplies
    multiplies = MULTIPLIES.search(f"{engine.kind} {engine.tactic} {engine.name.rpartition('__myl_')[2]}") is not None
    return multiplies == (layer.macs is not None), _contains(engine.name, layer.name), engine.weights != "UNKNOWN"


def _is_lost(item: Placed, wish: Wish) -> bool:
    low = item.type != OPAQUE and item.type in COMPUTES and item.type != "FLOAT"
    return low and item.layer.node in wish.allowed and item.layer.kind not in MOVES


def _nodes(items: Iterable[Placed]) -> list[str]:
    return list(dict.fromkeys(item.layer.node for item in items))


def _too_little(found: list[Placed], kept: list[Placed], wanted: str) -> bool:
    """Say whether even with all that cannot be seen in its favour, too little of the engine is what it is called."""
    open_to = [item for item in found if item.type in (wanted, OPAQUE)]
    free = [item for item in found if item not in kept]
    if not found or not open_to:
        return bool(found)
    counted = [item.layer for item in open_to if item in free]
    return bool(free) and share_of(counted, [item.layer for item in free]).value < ENOUGH


def _none_seen(found: list[Placed], wanted: str) -> bool:
    """Say whether nothing is in the type that TensorRT was free to take, and most of the work can be seen."""
    hidden = share_of([item.layer for item in found if item.type == OPAQUE], [item.layer for item in found]).value
    return bool(found) and hidden < ENOUGH and not any(item.type == wanted for item in found)


def _realised(found: list[Placed], wanted: str, precision: str) -> str:
    """Name the precision of the compute layers; `unproven` where more is hidden than seen."""
    types = {item.type for item in found}
    seen = types - {OPAQUE}
    hidden = share_of([item.layer for item in found if item.type == OPAQUE], [item.layer for item in found]).value
    if found and (not seen or (seen == {wanted} and hidden > ENOUGH)):
        return "unproven"
    if not seen or seen == {wanted}:
        return precision
    return NAMES.get(next(iter(seen)), next(iter(seen)).lower()) if len(types) == 1 else "mixed"


def _by_kind(found: list[Placed], asked: Asked, wish: Wish) -> dict[str, dict[str, dict[str, int]]]:
    table: dict[str, dict[str, dict[str, int]]] = {}
    for item in found:
        row = table.setdefault(item.layer.kind, {"requested": {}, "realised": {}})
        otherwise = "FLOAT" if item.layer.node in wish.allowed else WANTED[wish.precision]
        for column, kind in (
            ("requested", otherwise if wish.precision == "int8" else asked.types.get(item.layer.node, otherwise)),
            ("realised", item.type),
        ):
            row[column][kind] = row[column].get(kind, 0) + 1
    return table
