"""Products with float, int8 and int4 weights in Triton: those of a layer (gpu_kernels.py), and any other.

Few rows wait for the weights, so a product is W x^T: the outputs of W fill the tensor cores' large side,
and up to 16 rows cost what one does. The bits of a row do not depend on the number of rows: each output is
one accumulator that walks all inputs in the same order; only the rows of a program (ROWS) follow the count.

A weight is a tuple (codes, groups, scales, entries): floats in `codes` alone, or what quantize.py describes.
`entries` is its table of 256 group scales by 16 codes, a byte each, entry + 128. Numbers are read exactly as
`Quantized.unpack` gives them: an entry is a whole number that float16 and bfloat16 hold, and the scale of its
output is multiplied once, in float32, at the end.

Shapes: B rows, N outputs, K inputs. A program computes OUTPUTS x ROWS outputs and reads INPUTS inputs at a
time.
"""

from __future__ import annotations

import triton
import triton.language as tl

GROUP = tl.constexpr(32)  # inputs that share a group scale; quantize.GROUP
COMPILED = tl.constexpr(not triton.knobs.runtime.interpret)  # the interpreter knows no instructions

# Four bytes of codes to eight float16. A group's 16 entries are the bytes of four registers: a permutation
# takes those of the codes' low three bits from both halves, another chooses the half by the fourth bit. With
# the byte 0x64 before it, entry + 128 is the float16 1,024 + 128 + entry. Which four bytes come together is
# the compiler's choice, on Hopper those of two outputs: each byte is looked up in the table of its own group.
LOOK_UP = tl.constexpr("""
{
    .reg .b32 low, half, t, u, a, b, high, bias;
    and.b32 low, $4, 0x77777777;
    and.b32 half, $4, 0x88888888;
    shr.u32 half, half, 1;
    or.b32 half, half, 0x32103210;
    prmt.b32 t, $5, $9, low;
    prmt.b32 u, $13, $17, low;
    prmt.b32 a, t, u, half;
    prmt.b32 t, $6, $10, low;
    prmt.b32 u, $14, $18, low;
    prmt.b32 t, t, u, half;
    prmt.b32 a, a, t, 0x7610;
    shr.u32 low, low, 16;
    shr.u32 half, half, 16;
    prmt.b32 t, $7, $11, low;
    prmt.b32 u, $15, $19, low;
    prmt.b32 b, t, u, half;
    prmt.b32 t, $8, $12, low;
    prmt.b32 u, $16, $20, low;
    prmt.b32 t, t, u, half;
    prmt.b32 b, b, t, 0x7610;
    mov.b32 high, 0x64646464;
    mov.b32 bias, 0x64806480;
    prmt.b32 t, a, high, 0x4240;
    prmt.b32 u, b, high, 0x4240;
    sub.rn.f16x2 $0, t, bias;
    sub.rn.f16x2 $1, u, bias;
    prmt.b32 t, a, high, 0x4341;
    prmt.b32 u, b, high, 0x4341;
    sub.rn.f16x2 $2, t, bias;
    sub.rn.f16x2 $3, u, bias;
}
""")


@triton.jit
def _inputs(
    x: tl.tensor,
    rows: tl.tensor,
    live: tl.tensor,
    columns: tl.tensor,
    norm: tl.tensor,
    K: tl.constexpr,
    NORM: tl.constexpr,
) -> tl.tensor:
    """(ROWS, INPUTS) of x (B, K); NORM: after LayerNorm, norm = (mean, 1 / deviation, gain, bias)."""
    inside = columns < K
    places = rows[:, None].to(tl.int64) * K + columns[None, :]
    tile = tl.load(x + places, mask=live[:, None] & inside[None, :], other=0.0)
    if NORM:
        mean, scale, gain, bias = norm
        gains = tl.load(gain + columns, mask=inside, other=0.0).to(tl.float32)
        biases = tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
        centred = (tile.to(tl.float32) - mean[:, None]) * scale[:, None]
        tile = (centred * gains[None, :] + biases[None, :]).to(x.dtype.element_ty)
    return tile


@triton.jit
def _nibbles(
    weight: tl.tensor,
    outputs: tl.tensor,
    start: tl.tensor,
    N: tl.constexpr,
    K: tl.constexpr,
    INPUTS: tl.constexpr,
) -> tl.tensor:
    """int4 weights of even and of odd inputs from `start` on, (OUTPUTS, INPUTS / 2) each: whole numbers."""
    codes, groups, _, entries = weight
    PAIRS: tl.constexpr = (K + 1) // 2
    GROUPS: tl.constexpr = (K + GROUP - 1) // GROUP
    pairs = start // 2 + tl.arange(0, INPUTS // 2)
    known = (outputs < N)[:, None]
    places = outputs[:, None].to(tl.int64) * PAIRS + pairs[None, :]
    both = tl.load(codes + places, mask=known & (pairs < PAIRS)[None, :], other=0)
    own = start // GROUP + tl.arange(0, INPUTS // GROUP)
    places = outputs[:, None].to(tl.int64) * GROUPS + own[None, :]
    sizes = tl.load(groups + places, mask=known & (own < GROUPS)[None, :], other=0).to(tl.int32)
    if COMPILED:
        words = entries.to(tl.pointer_type(tl.int32)) + sizes * 4
        even, odd = tl.inline_asm_elementwise(
            LOOK_UP,
            "=&r,=&r,=&r,=&r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r",
            [
                both,
                _spread(tl.load(words), INPUTS),
                _spread(tl.load(words + 1), INPUTS),
                _spread(tl.load(words + 2), INPUTS),
                _spread(tl.load(words + 3), INPUTS),
            ],
            dtype=(tl.float16, tl.float16),
            is_pure=True,
            pack=4,
        )
    else:
        rows = entries + _spread(sizes, INPUTS) * 16
        even = tl.load(rows + (both & 15)).to(tl.int32) - 128
        odd = tl.load(rows + (both >> 4)).to(tl.int32) - 128
    return even, odd


@triton.jit
def _spread(x: tl.tensor, INPUTS: tl.constexpr) -> tl.tensor:
    """Repeats a group's value for each byte of its codes: (OUTPUTS, groups) -> (OUTPUTS, INPUTS / 2)."""
    wide = tl.broadcast_to(x[:, :, None], (x.shape[0], INPUTS // GROUP, GROUP // 2))
    return tl.reshape(wide, (x.shape[0], INPUTS // 2))


@triton.jit
def _weights(
    weight: tl.tensor, outputs: tl.tensor, columns: tl.tensor, N: tl.constexpr, K: tl.constexpr
) -> tl.tensor:
    """(OUTPUTS, INPUTS) floats or int8 codes."""
    places = outputs[:, None].to(tl.int64) * K + columns[None, :]
    return tl.load(weight[0] + places, mask=(outputs < N)[:, None] & (columns < K)[None, :], other=0)


@triton.jit
def product(
    x: tl.tensor,
    weight: tl.tensor,
    places: tl.tensor,
    norm: tl.tensor,
    h: tl.tensor,
    N: tl.constexpr,
    K: tl.constexpr,
    TILE: tl.constexpr,
    FORMAT: tl.constexpr,
) -> tl.tensor:
    """x W^T, (OUTPUTS, ROWS) float32. places: (outputs, rows, live). h: None, or where normed x is kept.

    TILE: (OUTPUTS, ROWS, INPUTS, loop stages).
    """
    outputs, rows, live = places
    NORM: tl.constexpr = h is not None
    OUTPUTS: tl.constexpr = TILE[0]
    ROWS: tl.constexpr = TILE[1]
    INPUTS: tl.constexpr = TILE[2]
    STAGES: tl.constexpr = TILE[3]
    dtype: tl.constexpr = x.dtype.element_ty
    acc = tl.zeros((OUTPUTS, ROWS), tl.float32)
    for start in tl.range(0, K, INPUTS, num_stages=STAGES):
        columns = start + tl.arange(0, INPUTS)
        tile = _inputs(x, rows, live, columns, norm, K, NORM)
        if NORM:
            keep = live[:, None] & (columns < K)[None, :] & (tl.program_id(0) == 0)
            tl.store(h + rows[:, None].to(tl.int64) * K + columns[None, :], tile, mask=keep)
        if FORMAT == "int4":
            even, odd = _nibbles(weight, outputs, start, N, K, INPUTS)
            x_even, x_odd = tl.split(tl.reshape(tile, (ROWS, INPUTS // 2, 2)))
            acc = tl.dot(even.to(dtype), tl.trans(x_even), acc, input_precision="ieee")
            acc = tl.dot(odd.to(dtype), tl.trans(x_odd), acc, input_precision="ieee")
        else:
            w = _weights(weight, outputs, columns, N, K).to(dtype)
            acc = tl.dot(w, tl.trans(tile), acc, input_precision="ieee")
    if FORMAT != "float":
        scales = tl.load(weight[2] + outputs, mask=outputs < N, other=0.0)
        acc = acc * scales[:, None]
    return acc


@triton.jit
def tile_places(pid_n: tl.tensor, pid_m: tl.tensor, n_rows: tl.tensor, TILE: tl.constexpr) -> tl.tensor:
    """Outputs and rows of a program, and which rows exist."""
    OUTPUTS: tl.constexpr = TILE[0]
    ROWS: tl.constexpr = TILE[1]
    outputs = pid_n * OUTPUTS + tl.arange(0, OUTPUTS)
    rows = pid_m * ROWS + tl.arange(0, ROWS)
    return outputs, rows, rows < n_rows


@triton.jit(do_not_specialize=["n_rows"])
def linear_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    n_rows: tl.tensor,
    N: tl.constexpr,
    K: tl.constexpr,
    TILE: tl.constexpr,
    FORMAT: tl.constexpr,
) -> None:
    """y = x W^T + bias; x (B, K), bias (N,) or None, y (B, N). Grid: ceil(N / OUTPUTS) times the row tiles.

    Neighbouring programs read the same weights, so many rows read them from memory once.
    """
    tiles = (n_rows + TILE[1] - 1) // TILE[1]
    outputs, rows, live = tile_places(tl.program_id(0) // tiles, tl.program_id(0) % tiles, n_rows, TILE)
    acc = product(x, weight, (outputs, rows, live), None, None, N, K, TILE, FORMAT)
    if bias is not None:
        acc += tl.load(bias + outputs, mask=outputs < N, other=0.0).to(tl.float32)[:, None]
    target = y + rows[None, :].to(tl.int64) * N + outputs[:, None]
    tl.store(target, acc, mask=(outputs < N)[:, None] & live[None, :])


@triton.jit
def unpack_kernel(
    weight: tl.tensor,
    y: tl.tensor,
    N: tl.constexpr,
    K: tl.constexpr,
    TILE: tl.constexpr,
    FORMAT: tl.constexpr,
) -> None:
    """y (N, K) = the weights as floats, for products of so many rows that a library's are faster.

    Grid: ceil(N / OUTPUTS), ceil(K / INPUTS).
    """
    OUTPUTS: tl.constexpr = TILE[0]
    INPUTS: tl.constexpr = TILE[2]
    outputs = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    start = tl.program_id(1) * INPUTS
    columns = start + tl.arange(0, INPUTS)
    if FORMAT == "int4":
        even, odd = _nibbles(weight, outputs, start, N, K, INPUTS)
        codes = tl.reshape(tl.join(even, odd), (OUTPUTS, INPUTS)).to(tl.float32)
    else:
        codes = _weights(weight, outputs, columns, N, K).to(tl.float32)
    scales = tl.load(weight[2] + outputs, mask=outputs < N, other=0.0)
    target = y + outputs[:, None].to(tl.int64) * K + columns[None, :]
    tl.store(target, codes * scales[:, None], mask=(outputs < N)[:, None] & (columns < K)[None, :])
