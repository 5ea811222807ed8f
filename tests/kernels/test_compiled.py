"""Every Triton kernel, in every variant that may be chosen, compiled for real devices: no device is needed for that.

What the compiled code takes is held to the device sheets: shared memory fits, registers do not spill, and as many programs
are resident as the plan of the single pass counts on.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest

from dpbench.kernels import sheet
from dpbench.kernels.linear import plan

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no triton here")

DEVICES = {80: sheet.A100, 86: sheet.RTX3090, 90: sheet.H100}
DTYPES = {"float32": "fp32", "tf32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
EVERY = os.environ.get("DPBENCH_TEST_EVERY_VARIANT") == "1"
SPILL = 32  # bytes a thread: what the assembler keeps around a call or a barrier, not a tile
POINTERS = {"weight", "bias", "parts", "norms", "factors", "into"}
ALIGNED = {"inputs", "outputs", "x_b", "x_t", "g_b", "g_t", "w_o", "w_v"}  # multiples of 16 in real models
ONES = {"x_i", "x_d", "g_o", "g_d", "w_i", "w_d", "bias_o"}


def signature(names, constants, dtype):
    """Argument name -> Triton's type."""
    argument_types = {}
    for name in names:
        if name in constants:
            argument_types[name] = "constexpr"
        elif name in ("x", "g"):
            argument_types[name] = f"*{dtype}"
        elif name in POINTERS:
            argument_types[name] = "*fp32"
        elif name in ("ids", "order"):
            argument_types[name] = "*i64"
        elif name == "arrived":
            argument_types[name] = "*i32"
        elif name in ("bound", "gamma", "eps", "std", "scale"):
            argument_types[name] = "fp32"
        else:
            argument_types[name] = "i64" if name == "key" else "i32"
    return argument_types


@cache
def compiled(kernel, arch, dtype, constants, warps, stages, cooperative=False):
    """(shared bytes, registers a thread, spilled bytes a thread, PTX)."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    constants = dict(constants) | {name: 1 for name in names if name in ONES}
    types = signature(names, constants, dtype)
    aligned = [n for n in names if types[n].startswith("*") or (n in ALIGNED and n not in constants)]
    source = ASTSource(
        kernel,
        types,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options = {"num_warps": warps, "num_stages": stages, "launch_cooperative_grid": cooperative}
    compiled_kernel = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    assert bool(compiled_kernel.metadata.launch_cooperative_grid) == cooperative
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled_kernel.asm["cubin"])
        file.flush()
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.search(rf"{word}:(\d+)", usage).group(1)) for word in ("REG", "STACK"))
    return compiled_kernel.metadata.shared, registers, stack, compiled_kernel.asm["ptx"]


def hold(device, warps, kernel, residents=1):
    shared, registers, spilled, _ = kernel
    assert shared <= device.shared, "shared memory"
    assert spilled <= SPILL, f"{spilled} bytes spilled"
    assert device.residents(registers, shared, warps) >= residents, f"{registers} registers, {shared} bytes"


def linear(name):
    from dpbench.kernels.linear import onchip

    return getattr(onchip, name)


def blocks(tile, rate):
    return {
        "BLOCK_O": tile.outputs,
        "BLOCK_I": tile.inputs,
        "BLOCK_T": tile.depth,
        "GROUP": 8,
        "PRECISION": "tf32" if rate == "tf32" else "ieee",
    }


def frozen(constants):
    return tuple(sorted(constants.items()))


def variants(get):
    """(arch, rate, tile): every dtype under DPBENCH_TEST_EVERY_VARIANT=1 (minutes), else bfloat16, and float32 on one device."""
    for arch in DEVICES:
        for rate in DTYPES if EVERY else ("float32", "bfloat16") if arch == max(DEVICES) else ("bfloat16",):
            for number, tile in enumerate(get(rate)):
                yield pytest.param(arch, rate, tile, id=f"sm{arch}-{rate}-{number}")


@pytest.mark.parametrize(("arch", "rate", "tile"), variants(plan.single_tiles))
def test_the_single_pass(arch, rate, tile):
    constants = {
        "STAGE": linear("SINGLE_PASS"),
        "AHEAD": tile.ahead,
        "FUNCTION": 2,
        "HAS_BIAS": True,
        "FRESH": False,
        "BLOCK_P": 256,
    }
    kernel = compiled(
        linear("linear_product_kernel"), arch, DTYPES[rate], frozen(constants | blocks(tile, rate)), tile.warps, tile.stages, True
    )
    hold(DEVICES[arch], tile.warps, kernel, tile.residents)
    code = kernel[3]
    released, acquired = code.find("gpu.release.add"), code.find("gpu.acquire")
    assert 0 < code.find("st.global") < released < acquired, "a part must be stored before it is announced, and read after"
    assert code.find("ld.global.cg", acquired) > 0, "norms are read past the first-level cache"


@pytest.mark.parametrize(("arch", "rate", "tile"), variants(plan.product_tiles))
def test_direct_norms_and_the_weighted_product(arch, rate, tile):
    constants = {"HAS_BIAS": True} | blocks(tile, rate)
    kernel = linear("linear_norm_kernel")
    hold(DEVICES[arch], tile.warps, compiled(kernel, arch, DTYPES[rate], frozen(constants), tile.warps, tile.stages))
    constants = {"HAS_BIAS": True, "FRESH": False, "NORMALISE": rate == "float16"}
    product_kernel = compiled(
        linear("linear_weighted_kernel"), arch, DTYPES[rate], frozen(constants | blocks(tile, rate)), tile.warps, tile.stages
    )
    hold(DEVICES[arch], tile.warps, product_kernel)
    assert "cp.async" in product_kernel[3], "tiles are not fetched ahead"


@pytest.mark.parametrize(("arch", "rate", "tile"), variants(plan.gram_tiles))
def test_gram_norms(arch, rate, tile):
    constants = {"HAS_BIAS": True, "BLOCK_T": tile.outputs, "BLOCK_F": tile.depth, "PRECISION": blocks(tile, rate)["PRECISION"]}
    kernel = compiled(linear("linear_gram_kernel"), arch, DTYPES[rate], frozen(constants), tile.warps, tile.stages)
    hold(DEVICES[arch], tile.warps, kernel)


@pytest.mark.parametrize("arch", DEVICES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"] if EVERY else ["fp32"])
def test_the_small_kernels(arch, dtype):
    from dpbench.kernels import onchip
    from dpbench.kernels.embedding import onchip as embedding
    from dpbench.kernels.embedding import triton as embedding_leaf
    from dpbench.kernels.layernorm import onchip as norm
    from dpbench.kernels.layernorm import triton as norm_leaf
    from dpbench.kernels.noise import triton as noise

    device = DEVICES[arch]
    for width in (1024, 8192):
        rows, warps = norm_leaf.rows_and_warps(width)
        constants = {"CENTRED": True, "SCALE": True, "SHIFT": True, "ROWS": rows, "BLOCK_D": width}
        hold(device, warps, compiled(norm.norm_gradients_kernel, arch, dtype, frozen(constants), warps, 3))
    constants = {"BLOCK_T": embedding_leaf._BLOCK_T, "BLOCK_F": embedding_leaf._BLOCK_F, "PRECISION": "ieee"}
    hold(device, 4, compiled(embedding.embedding_norm_kernel, arch, dtype, frozen(constants), 4, 3))
    constants = {"ROWS": embedding_leaf._ROWS, "BLOCK_D": embedding_leaf._BLOCK_D}
    hold(device, 4, compiled(embedding.embedding_add_kernel, arch, dtype, frozen(constants), 4, 3))
    if dtype == "fp32":
        for function in onchip.FUNCTIONS.values():
            hold(device, 4, compiled(onchip.finish_kernel, arch, dtype, frozen({"FUNCTION": function, "BLOCK": 256}), 4, 3))
        hold(device, 4, compiled(noise.noise_add_kernel, arch, dtype, frozen({"BLOCK": noise._BLOCK}), 4, 3))
