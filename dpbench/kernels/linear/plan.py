"""The choice of a kernel for a linear layer: a cost model of three ways, and the few tiles each may use. No torch import.

Nothing is timed at run time: the same shapes on the same device always take the same way (compare FLASH-12). The rates come
from the device's sheet; the constants below are our estimates, which `dpbench bench kernels` can be compared with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from dpbench.kernels.sheet import Sheet


@dataclass(frozen=True)
class Tile:
    """One compiled variant: a tile of outputs x inputs of the weight, or of tokens x tokens (Gram), and `depth` terms at a time.

    residents: How many programs of a single pass one multiprocessor holds, which the tests of the compiled kernels check.
    ahead: See `linear_product_kernel`. reach: The share of the peak rate that such tiles can reach.
    """

    outputs: int
    inputs: int
    depth: int
    warps: int
    stages: int
    reach: float
    residents: int = 1
    ahead: bool = False


@dataclass(frozen=True)
class Plan:
    """How the norms and the sum of one layer are formed. way is `single`, `gram` or `direct`; norms is None in a single pass."""

    way: str
    norms: Tile | None
    sums: Tile
    seconds: float


EXCHANGE = 2.5e-6  # seconds of one norm exchange across the grid: three trips to the second-level cache
LAUNCH = 4e-6  # seconds of one more kernel launch
PARTS = 4096  # the most tiles whose partial norms every program of a single pass adds up

_WIDE = (Tile(128, 64, 32, 8, 3, 0.6), Tile(64, 64, 32, 4, 3, 0.45))
_HALF = (Tile(128, 128, 64, 8, 3, 0.6), Tile(64, 64, 64, 4, 3, 0.4))
_SINGLE = (
    Tile(64, 64, 32, 4, 3, 0.35, residents=2, ahead=True),
    Tile(128, 64, 32, 8, 3, 0.45, ahead=True),
    Tile(128, 128, 32, 8, 3, 0.5),
)
_GRAM_WIDE = (Tile(64, 64, 32, 4, 3, 0.45),)
_GRAM_HALF = (Tile(128, 128, 32, 8, 3, 0.5), Tile(64, 64, 64, 4, 3, 0.4))


def product_tiles(dtype: str) -> tuple[Tile, ...]:
    """Return the tiles of the weighted product and of direct norms."""
    return _HALF if dtype in ("bfloat16", "float16") else _WIDE


def gram_tiles(dtype: str) -> tuple[Tile, ...]:
    """Return the tiles of Gram norms."""
    return _GRAM_HALF if dtype in ("bfloat16", "float16") else _GRAM_WIDE


def single_tiles(_dtype: str) -> tuple[Tile, ...]:
    """Return the tiles of the single pass."""
    return _SINGLE


def programs(tile: Tile, outputs: int, inputs: int) -> int:
    """Return the number of tiles that cover a weight, with one program each."""
    return -(-outputs // tile.outputs) * -(-inputs // tile.inputs)


def pairs(tokens: int, tile: Tile) -> int:
    """Return the number of tiles on and below the diagonal of a tokens x tokens matrix."""
    side = -(-tokens // tile.outputs)
    return side * (side + 1) // 2


def _matmul(sheet: Sheet, tile: Tile, count: int, depth: int, dtype: str) -> float:
    """Return the seconds of `count` tiles, each summed over `depth`; the last wave may leave multiprocessors idle."""
    waves = -(-count // sheet.sms)
    return waves * 2.0 * tile.outputs * tile.inputs * depth * sheet.sms / (sheet.flops[dtype] * tile.reach)


def _ceiling(value: int, step: int) -> int:
    return -(-value // step) * step


def _memory(sheet: Sheet, elements: float, dtype: str) -> float:
    return elements * (2 if dtype in ("bfloat16", "float16") else 4) / sheet.bytes_per_second


def fits(sheet: Sheet, tile: Tile, outputs: int, inputs: int) -> bool:
    """Return whether all tiles of a weight can be resident at once, as the grid-wide exchange of a single pass requires."""
    return programs(tile, outputs, inputs) <= min(sheet.sms * tile.residents, PARTS)


def _single(sheet: Sheet, tile: Tile, shape: tuple[int, int, int, int], dtype: str) -> float:
    batch, tokens, inputs, outputs = shape
    seconds = _matmul(sheet, tile, programs(tile, outputs, inputs), _ceiling(tokens, tile.depth), dtype)
    return LAUNCH + batch * (max(seconds, EXCHANGE) if tile.ahead else seconds + EXCHANGE)


def _norms(sheet: Sheet, way: str, tile: Tile, shape: tuple[int, int, int, int], dtype: str) -> float:
    batch, tokens, inputs, outputs = shape
    if way == "gram":
        depth = _ceiling(inputs, tile.depth) + _ceiling(outputs, tile.depth)
        work = _matmul(sheet, tile, batch * pairs(tokens, tile), depth, dtype)
    else:
        work = _matmul(sheet, tile, batch * programs(tile, outputs, inputs), _ceiling(tokens, tile.depth), dtype)
    return 2 * LAUNCH + max(work, _memory(sheet, batch * tokens * (inputs + outputs), dtype))


def _sum(sheet: Sheet, tile: Tile, shape: tuple[int, int, int, int], dtype: str) -> float:
    batch, tokens, inputs, outputs = shape
    work = _matmul(sheet, tile, programs(tile, outputs, inputs), _ceiling(batch * tokens, tile.depth), dtype)
    return LAUNCH + max(work, _memory(sheet, batch * tokens * (inputs + outputs) + 2.0 * inputs * outputs, dtype))


@cache
def sum_tile(sheet: Sheet, batch: int, tokens: int, inputs: int, outputs: int, dtype: str) -> Tile:
    """Return the tile of the weighted product."""
    return min(product_tiles(dtype), key=lambda tile: _sum(sheet, tile, (batch, tokens, inputs, outputs), dtype))


@cache
def norm_way(sheet: Sheet, batch: int, tokens: int, inputs: int, outputs: int, dtype: str) -> tuple[str, Tile]:
    """Return the way, `gram` or `direct`, that takes less time where only the norms are needed, and its tile.

    Gram takes about T^2 (I + O) multiply-adds an example, half of which are not computed; direct takes T I O.
    """
    shape = (batch, tokens, inputs, outputs)
    options = [("gram", t) for t in gram_tiles(dtype)] + [("direct", t) for t in product_tiles(dtype)]
    return min(options, key=lambda option: _norms(sheet, option[0], option[1], shape, dtype))


def plans(sheet: Sheet, batch: int, tokens: int, inputs: int, outputs: int, dtype: str) -> Iterator[Plan]:
    """Yield every plan that can run, with its estimated seconds, for a dtype `bfloat16`, `float16`, `tf32` or `float32`."""
    shape = (batch, tokens, inputs, outputs)
    for tile in single_tiles(dtype):
        if fits(sheet, tile, outputs, inputs):
            yield Plan("single", None, tile, _single(sheet, tile, shape, dtype))
    sums = sum_tile(sheet, *shape, dtype)
    for way, options in (("gram", gram_tiles(dtype)), ("direct", product_tiles(dtype))):
        norms = min(options, key=lambda tile: _norms(sheet, way, tile, shape, dtype))
        yield Plan(way, norms, sums, _norms(sheet, way, norms, shape, dtype) + _sum(sheet, sums, shape, dtype))


@cache
def choose(sheet: Sheet, batch: int, tokens: int, inputs: int, outputs: int, dtype: str, single: bool = True) -> Plan:
    """Return the plan of least estimated time; without `single`, among those that need no grid-wide exchange."""
    candidates = plans(sheet, batch, tokens, inputs, outputs, dtype)
    return min((plan for plan in candidates if single or plan.way != "single"), key=lambda plan: plan.seconds)
