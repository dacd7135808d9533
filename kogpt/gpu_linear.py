"""Products with float, int8 and int4 weights in Triton: those of a layer (gpu_kernels.py), and any other.

Few rows wait for the weights, so a product is W x^T: the outputs of W fill the tensor cores' large side,
and 8 rows cost what one does. The bits of a row do not depend on the number of rows: an output is summed in
the same order whatever it is; only the rows of a program (ROWS) follow the count.

A weight is a tuple (codes, groups, scales, entries): floats in `codes` alone, or what quantize.py describes.
`entries` is its table of 256 group scales by 16 codes, a byte each, entry + 128. Numbers are read exactly as
`Quantized.unpack` gives them: an entry is a whole number that float16 and bfloat16 hold, and the scale of its
output is multiplied once, in float32, at the end.

Codes go from memory to the tensor cores through registers alone. A thread reads 16 bytes of one output, a run
of 16 inputs (int8) or one group of 32 (int4). The inputs are put into such an order that these are what the
instruction m16n8k16 wants from it; x is read in the same order. Warps divide the inputs and meet once, at the
end, so that none waits for another in the loop. Triton chooses the layouts. The order of dimensions in
`_runs` is one that it needs no conversion for; any other order gives the same numbers.

Shapes: B rows, N outputs, K inputs. A program computes OUTPUTS x ROWS outputs and reads INPUTS inputs at a
time.
"""

from __future__ import annotations

import triton
import triton.language as tl

COMPILED = tl.constexpr(not triton.knobs.runtime.interpret)  # the interpreter knows no instructions

# A word of int8 codes to four float16: with the byte 0x64 before it, code + 128 is the float16 1,024 + 128 +
# code, from which 1,152 is subtracted.
BYTES = tl.constexpr("""
{
    .reg .b32 t, u, high, bias;
    mov.b32 high, 0x64646464;
    mov.b32 bias, 0x64806480;
    xor.b32 t, $4, 0x80808080;
    prmt.b32 u, t, high, 0x4140;
    sub.rn.f16x2 u, u, bias;
    mov.b32 {$0, $1}, u;
    prmt.b32 u, t, high, 0x4342;
    sub.rn.f16x2 u, u, bias;
    mov.b32 {$2, $3}, u;
}
""")

# A word of int4 codes to eight float16. The 16 entries of its group are the bytes of four registers: a
# permutation takes those of the codes' low three bits from both halves, another chooses the half by the
# fourth bit (lop3 0xEA: first & second | third). Entries + 128 become float16 as in BYTES.
NIBBLES = tl.constexpr("""
{
    .reg .b32 low, half, t, u, a, b, high, bias;
    mov.b32 high, 0x64646464;
    mov.b32 bias, 0x64806480;
    and.b32 low, $8, 0x77777777;
    shr.u32 half, $8, 1;
    lop3.b32 half, half, 0x44444444, 0x32103210, 0xEA;
    prmt.b32 t, $9, $10, low;
    prmt.b32 u, $11, $12, low;
    prmt.b32 a, t, u, half;
    shr.u32 low, low, 16;
    shr.u32 half, half, 16;
    prmt.b32 t, $9, $10, low;
    prmt.b32 u, $11, $12, low;
    prmt.b32 b, t, u, half;
    prmt.b32 t, a, high, 0x4140;
    sub.rn.f16x2 t, t, bias;
    mov.b32 {$0, $1}, t;
    prmt.b32 t, a, high, 0x4342;
    sub.rn.f16x2 t, t, bias;
    mov.b32 {$2, $3}, t;
    prmt.b32 t, b, high, 0x4140;
    sub.rn.f16x2 t, t, bias;
    mov.b32 {$4, $5}, t;
    prmt.b32 t, b, high, 0x4342;
    sub.rn.f16x2 t, t, bias;
    mov.b32 {$6, $7}, t;
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
def _runs(
    first: tl.tensor,
    start: tl.tensor,
    COUNT: tl.constexpr,
    SLICES: tl.constexpr,
    RUN: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
) -> tl.tensor:
    """Places of runs of RUN columns in a matrix (N, K), and which exist: (4, 8, SLICES, COUNT / 8) each.

    The runs begin at column `start` of the lines `first` .. `first` + COUNT. A slice, four runs side by side,
    is what one warp reads at a time: four of its lanes, for each of eight lines.
    """
    run = tl.arange(0, 4)[:, None, None, None]
    part = tl.arange(0, SLICES)[None, None, :, None]
    column = start + part * (4 * RUN) + run * RUN
    eight = tl.arange(0, COUNT // 8)[None, None, None, :]
    line = first + eight * 8 + tl.arange(0, 8)[None, :, None, None]
    return line * K + column, (line < N) & (column < K)


@triton.jit
def _integers(weight: tl.tensor, places: tl.tensor, known: tl.tensor, FORMAT: tl.constexpr) -> tl.tensor:
    """Whole numbers of runs: (..., 4, 4 or 8), float16 on a GPU; codes of 0 where not known.

    places: of the first of each run's four words of codes.
    """
    codes, groups, _, entries = weight
    word = tl.arange(0, 4)
    each = tl.expand_dims(places, 4) + word
    words = tl.load(codes.to(tl.pointer_type(tl.int32)) + each, mask=tl.expand_dims(known, 4), other=0)
    if FORMAT == "int8":
        numbers = _of_bytes(words)
    else:
        # Without the hint Triton reads several groups with one thread, and moves them through shared memory.
        apart = tl.max_contiguous(groups + (places >> 2), (1, 1, 1, 1))
        size = tl.load(apart, mask=known, other=0).to(tl.int32)
        if COMPILED:
            table = tl.load(entries.to(tl.pointer_type(tl.int32)) + (tl.expand_dims(size * 4, 4) + word))
            numbers = _of_nibbles(words, table)
        else:
            code = (tl.expand_dims(words, 5) >> (tl.arange(0, 8) * 4)) & 15
            own = entries + tl.expand_dims(tl.expand_dims(size * 16, 4), 5)
            numbers = tl.load(own + code).to(tl.int32) - 128
    return numbers


@triton.jit
def _of_bytes(words: tl.tensor) -> tl.tensor:
    """int8 codes of words (...): (..., 4)."""
    if COMPILED:
        w0, w1, w2, w3 = tl.inline_asm_elementwise(
            BYTES,
            "=h,=h,=h,=h,r",
            [words],
            dtype=(tl.float16, tl.float16, tl.float16, tl.float16),
            is_pure=True,
            pack=1,
        )
        both = tl.join(tl.join(w0, w2), tl.join(w1, w3))  # the last dimension counts by one
        numbers = tl.reshape(both, words.shape + [4])  # noqa: RUF005 - Triton knows no unpacking
    else:
        numbers = (tl.expand_dims(words, 5) << (24 - 8 * tl.arange(0, 4))) >> 24
    return numbers


@triton.jit
def _of_nibbles(words: tl.tensor, table: tl.tensor) -> tl.tensor:
    """Entries of the int4 codes of words (..., 4): (..., 4, 8). table: (..., 4), the 16 entries of a run."""
    shape: tl.constexpr = table.shape
    halves = tl.reshape(table, (shape[0], shape[1], shape[2], shape[3], 2, 2))
    even, odd = tl.split(halves)
    t0, t2 = tl.split(even)
    t1, t3 = tl.split(odd)
    w0, w1, w2, w3, w4, w5, w6, w7 = tl.inline_asm_elementwise(
        NIBBLES,
        "=h,=h,=h,=h,=h,=h,=h,=h,r,r,r,r,r",
        [words, tl.expand_dims(t0, 4), tl.expand_dims(t1, 4), tl.expand_dims(t2, 4), tl.expand_dims(t3, 4)],
        dtype=(tl.float16,) * 8,
        is_pure=True,
        pack=1,
    )
    even = tl.join(tl.join(w0, w4), tl.join(w2, w6))
    odd = tl.join(tl.join(w1, w5), tl.join(w3, w7))
    return tl.reshape(tl.join(even, odd), words.shape + [8])  # noqa: RUF005 - Triton knows no unpacking


@triton.jit
def _quantized_product(
    x: tl.tensor,
    weight: tl.tensor,
    first: tl.tensor,
    n_rows: tl.tensor,
    N: tl.constexpr,
    K: tl.constexpr,
    TILE: tl.constexpr,
    FORMAT: tl.constexpr,
) -> tl.tensor:
    """x W^T, (OUTPUTS, ROWS) float32, before the scales. first: output and row of the program.

    K is a multiple of RUN. As many warps as slices are best.
    """
    tl.static_assert(N * K < 2**31, "places are counted in 32 bits")
    OUTPUTS: tl.constexpr = TILE[0]
    ROWS: tl.constexpr = TILE[1]
    INPUTS: tl.constexpr = TILE[2]
    STAGES: tl.constexpr = TILE[3]
    RUN: tl.constexpr = run_inputs(FORMAT)
    SLICES: tl.constexpr = INPUTS // (4 * RUN)
    SIZE: tl.constexpr = RUN // 4
    acc = tl.zeros((SLICES, OUTPUTS, ROWS), tl.float32)
    for start in tl.range(0, K, INPUTS, num_stages=1, loop_unroll_factor=STAGES):
        places, known = _runs(first[0], start // SIZE, OUTPUTS, SLICES, 4, N, K // SIZE)
        w = _integers(weight, places, known, FORMAT)  # (4 runs, 8, SLICES, OUTPUTS / 8, 4 words, SIZE)
        w = tl.reshape(tl.permute(w, (2, 3, 1, 4, 0, 5)), (SLICES, OUTPUTS, 4 * RUN))
        places, known = _runs(first[1], start, ROWS, SLICES, RUN, n_rows, K)
        each = tl.expand_dims(tl.expand_dims(places, 4) + tl.arange(0, 4) * SIZE, 5) + tl.arange(0, SIZE)
        tile = tl.load(x + each, mask=tl.expand_dims(tl.expand_dims(known, 4), 5), other=0.0)
        tile = tl.reshape(tl.permute(tile, (2, 4, 0, 5, 3, 1)), (SLICES, 4 * RUN, ROWS))
        acc = tl.dot(w.to(x.dtype.element_ty), tile, acc, input_precision="ieee")
    return tl.sum(acc, 0)


@triton.constexpr_function
def run_inputs(form: str) -> int:
    """Inputs whose codes fill 16 bytes; the inputs of a matrix in `form` are a multiple of them."""
    return 32 if form == "int4" else 16


@triton.jit
def _float_product(
    x: tl.tensor,
    weight: tl.tensor,
    places: tl.tensor,
    norm: tl.tensor,
    h: tl.tensor,
    N: tl.constexpr,
    K: tl.constexpr,
    TILE: tl.constexpr,
) -> tl.tensor:
    """As `product`."""
    outputs, rows, live, _ = places
    NORM: tl.constexpr = h is not None
    OUTPUTS: tl.constexpr = TILE[0]
    ROWS: tl.constexpr = TILE[1]
    INPUTS: tl.constexpr = TILE[2]
    STAGES: tl.constexpr = TILE[3]
    acc = tl.zeros((OUTPUTS, ROWS), tl.float32)
    for start in tl.range(0, K, INPUTS, num_stages=STAGES):
        columns = start + tl.arange(0, INPUTS)
        tile = _inputs(x, rows, live, columns, norm, K, NORM)
        if NORM:
            keep = live[:, None] & (columns < K)[None, :] & (tl.program_id(0) == 0)
            tl.store(h + rows[:, None].to(tl.int64) * K + columns[None, :], tile, mask=keep)
        weights = weight[0] + outputs[:, None].to(tl.int64) * K + columns[None, :]
        w = tl.load(weights, mask=(outputs < N)[:, None] & (columns < K)[None, :], other=0)
        acc = tl.dot(w, tl.trans(tile), acc, input_precision="ieee")
    return acc


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
    """x W^T, (OUTPUTS, ROWS) float32. places: those of `tile_places`.

    norm, h: of a LayerNorm of x, and where normed x is kept; floats only, None without.
    TILE: (OUTPUTS, ROWS, INPUTS, loop stages).
    """
    if FORMAT == "float":
        acc = _float_product(x, weight, places, norm, h, N, K, TILE)
    else:
        outputs, _, _, first = places
        tl.static_assert(h is None, "x of codes is normed already")
        acc = _quantized_product(x, weight, first, first[2], N, K, TILE, FORMAT)
        acc = acc * tl.load(weight[2] + outputs, mask=outputs < N, other=0.0)[:, None]
    return acc


@triton.jit
def tile_places(pid_n: tl.tensor, pid_m: tl.tensor, n_rows: tl.tensor, TILE: tl.constexpr) -> tl.tensor:
    """Outputs and rows of a program, which rows exist, and (first output, first row, number of rows)."""
    OUTPUTS: tl.constexpr = TILE[0]
    ROWS: tl.constexpr = TILE[1]
    outputs = pid_n * OUTPUTS + tl.arange(0, OUTPUTS)
    rows = pid_m * ROWS + tl.arange(0, ROWS)
    return outputs, rows, rows < n_rows, (pid_n * OUTPUTS, pid_m * ROWS, n_rows)


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
    places = tile_places(tl.program_id(0) // tiles, tl.program_id(0) % tiles, n_rows, TILE)
    outputs, rows, live, _ = places
    acc = product(x, weight, places, None, None, N, K, TILE, FORMAT)
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
    RUN: tl.constexpr = run_inputs(FORMAT)
    SIZE: tl.constexpr = RUN // 4
    first = tl.program_id(0) * OUTPUTS
    SLICES: tl.constexpr = TILE[2] // (4 * RUN)
    places, known = _runs(first, tl.program_id(1) * TILE[2] // SIZE, OUTPUTS, SLICES, 4, N, K // SIZE)
    codes = _integers(weight, places, known, FORMAT)
    output = places // (K // SIZE)
    scale = tl.load(weight[2] + output, mask=known, other=0.0)
    each = tl.expand_dims(tl.expand_dims(places, 4) + tl.arange(0, 4), 5).to(tl.int64) * SIZE
    each += tl.arange(0, SIZE)
    values = codes.to(tl.float32) * tl.expand_dims(tl.expand_dims(scale, 4), 5)
    tl.store(y + each, values, mask=tl.expand_dims(tl.expand_dims(known, 4), 5))
