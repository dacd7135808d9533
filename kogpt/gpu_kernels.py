"""The Triton kernels of a layer, three launches; gpu_steps.py launches them.

    qkv_kernel              LayerNorm, q, k and v, rotation of interleaved pairs, k and v into the cache
    attention_fc_in_kernel  attention beside fc_in and GELU: the cache is read while the weights stream
    out_kernel              out_proj and fc_out as one sum, the residual, and the sums of the next LayerNorm

Many rows multiply by a library, around two kernels:

    rotate_kernel           rotation, k and v into the cache
    attention_kernel        attention through the block table; nothing is gathered

Products are those of gpu_linear.py. Attention always splits the keys at the same positions (CHUNK), so
the bits of a row do not depend on the rows beside it.
Shapes: B rows, E model width, H heads, D head width, R rotary width, F MLP width, W blocks of a table.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kogpt.gpu_linear import product, tile_places

PAGE = tl.constexpr(32)  # positions of a block of the cache; torch_cache.BLOCK
CHUNK = tl.constexpr(256)  # positions that one attention program reads


@triton.jit
def _statistics(
    sums: tl.tensor,
    rows: tl.tensor,
    live: tl.tensor,
    n_rows: tl.tensor,
    eps: tl.tensor,
    E: tl.constexpr,
    WIDTH: tl.constexpr,
) -> tl.tensor:
    """Mean and 1 / deviation of rows from the (parts, B, 2) that `_store_sums` wrote, in a fixed order."""
    PARTS: tl.constexpr = (E + WIDTH - 1) // WIDTH
    part = tl.arange(0, triton.next_power_of_2(PARTS))
    places = (part[:, None] * n_rows + rows[None, :]) * 2
    known = (part < PARTS)[:, None] & live[None, :]
    sizes = tl.minimum(E - part * WIDTH, WIDTH).to(tl.float32)[:, None]
    total = tl.load(sums + places, mask=known, other=0.0)
    squares = tl.load(sums + places + 1, mask=known, other=0.0)
    mean = tl.sum(total, 0) / E
    away = total / sizes - mean[None, :]
    spread = tl.sum(tl.where(known, squares + sizes * away * away, 0.0), 0) / E
    return mean, 1.0 / tl.sqrt(spread + eps)


@triton.jit
def _store_sums(
    sums: tl.tensor,
    part: tl.tensor,
    x: tl.tensor,
    outputs: tl.tensor,
    rows: tl.tensor,
    n_rows: tl.tensor,
    E: tl.constexpr,
) -> tl.tensor:
    """Sum of a part of x and squares about its own mean (Chan et al. 1979); x: (OUTPUTS, ROWS) float32."""
    inside = (outputs < E)[:, None]
    size = tl.sum(inside.to(tl.float32), 0)
    total = tl.sum(tl.where(inside, x, 0.0), 0)
    away = tl.where(inside, x - (total / size)[None, :], 0.0)
    places = sums + (part * n_rows + rows) * 2
    tl.store(places, total, mask=rows < n_rows)
    tl.store(places + 1, tl.sum(away * away, 0), mask=rows < n_rows)


@triton.jit(do_not_specialize=["n_rows"])
def sums_kernel(
    x: tl.tensor, sums: tl.tensor, n_rows: tl.tensor, E: tl.constexpr, TILE: tl.constexpr
) -> None:
    """The sums of x (B, E), as out_kernel writes them: for the first layer."""
    outputs, rows, live, _ = tile_places(tl.program_id(0), tl.program_id(1), n_rows, TILE)
    places = x + rows[None, :].to(tl.int64) * E + outputs[:, None]
    tile = tl.load(places, mask=(outputs < E)[:, None] & live[None, :], other=0.0).to(tl.float32)
    _store_sums(sums, tl.program_id(0), tile, outputs, rows, n_rows, E)


@triton.jit(do_not_specialize=["n_rows"])
def qkv_kernel(
    x: tl.tensor,
    norm: tl.tensor,
    weights: tl.tensor,
    rotation: tl.tensor,
    q: tl.tensor,
    h: tl.tensor,
    cache: tl.tensor,
    slots: tl.tensor,
    n_rows: tl.tensor,
    cache_stride: tl.tensor,
    SHAPE: tl.constexpr,
    TILE: tl.constexpr,
    FORMAT: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    """x (B, E) -> h = LayerNorm(x), q (B, E); k and v into the cache (2, positions, E) at slots (B,).

    With codes, x is normed already, and h is not written.
    norm: (sums, gain, bias, epsilon). weights: those of q, k and v. rotation: cos and sin, (B, R) each, every
    pair twice. SHAPE: (E, D, R). WIDTH: columns of a part of `sums`. Grid: 3 ceil(E / OUTPUTS), row tiles.
    """
    E: tl.constexpr = SHAPE[0]
    OUTPUTS: tl.constexpr = TILE[0]
    ROWS: tl.constexpr = TILE[1]
    TILES: tl.constexpr = (E + OUTPUTS - 1) // OUTPUTS
    which = tl.program_id(0) // TILES
    places = tile_places(tl.program_id(0) % TILES, tl.program_id(1), n_rows, TILE)
    _, rows, live, _ = places
    weight = weights[0]
    if which == 1:
        weight = weights[1]
    if which == 2:
        weight = weights[2]
    if FORMAT == "float":
        mean, scale = _statistics(norm[0], rows, live, n_rows, norm[3], E, WIDTH)
        acc = product(x, weight, places, (mean, scale, norm[1], norm[2]), h, E, E, TILE, FORMAT)
    else:
        acc = product(x, weight, places, None, None, E, E, TILE, FORMAT)
    pairs = tl.permute(tl.reshape(acc, (OUTPUTS // 2, 2, ROWS)), (0, 2, 1))
    even, odd = tl.split(pairs)  # (OUTPUTS / 2, ROWS)
    first = tl.program_id(0) % TILES * OUTPUTS + 2 * tl.arange(0, OUTPUTS // 2)
    _store_turned((even, odd), which, (first, rows, live), rotation, q, (cache, slots, cache_stride), SHAPE)


@triton.jit
def _store_turned(
    pair: tl.tensor,
    which: tl.tensor,
    places: tl.tensor,
    rotation: tl.tensor,
    q: tl.tensor,
    cached: tl.tensor,
    SHAPE: tl.constexpr,
) -> None:
    """Rotate pairs of q and k, and store q (B, E), or k and v into the cache.

    pair: even and odd columns, (n, ROWS) float32 each. which: 0 for q, 1 for k, 2 for v. places: the even
    columns (n,), rows, and which rows exist. cached: (cache, slots, stride of values after keys).
    """
    E: tl.constexpr = SHAPE[0]
    D: tl.constexpr = SHAPE[1]
    R: tl.constexpr = SHAPE[2]
    even, odd = pair
    first, rows, live = places
    column = (first % D)[:, None]
    turned = (column < R) & live[None, :] & (which < 2)
    angle = rows[None, :] * R + column
    cos = tl.load(rotation[0] + angle, mask=turned, other=1.0)
    sin = tl.load(rotation[1] + angle + 1, mask=turned, other=0.0)
    known = (first < E)[:, None] & live[None, :]
    if which == 0:
        target = q + rows[None, :].to(tl.int64) * E + first[:, None]
        tl.store(target, even * cos - odd * sin, mask=known)
        tl.store(target + 1, odd * cos + even * sin, mask=known)
    else:
        slot = tl.load(cached[1] + rows, mask=live, other=0).to(tl.int64)
        target = cached[0] + (which - 1).to(tl.int64) * cached[2] + slot[None, :] * E + first[:, None]
        tl.store(target, even * cos - odd * sin, mask=known)
        tl.store(target + 1, odd * cos + even * sin, mask=known)


@triton.jit(do_not_specialize=["n_rows"])
def rotate_kernel(
    projected: tl.tensor,
    rotation: tl.tensor,
    q: tl.tensor,
    cache: tl.tensor,
    slots: tl.tensor,
    n_rows: tl.tensor,
    strides: tl.tensor,
    SHAPE: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Rotation and cache write, which qkv_kernel does after its product.

    projected: q, k and v, (B, E) each. strides: of their rows, and of values after keys in the cache. SHAPE:
    (E, D, R). Grid: 3 ceil(E / COLUMNS), B.
    """
    E: tl.constexpr = SHAPE[0]
    TILES: tl.constexpr = (E + COLUMNS - 1) // COLUMNS
    which = tl.program_id(0) // TILES
    rows = tl.program_id(1) + tl.arange(0, 1)
    first = tl.program_id(0) % TILES * COLUMNS + 2 * tl.arange(0, COLUMNS // 2)
    x = projected[0]
    if which == 1:
        x = projected[1]
    if which == 2:
        x = projected[2]
    known = (first < E)[:, None]
    places = x + rows[None, :].to(tl.int64) * strides[0] + first[:, None]
    even = tl.load(places, mask=known, other=0.0).to(tl.float32)
    odd = tl.load(places + 1, mask=known, other=0.0).to(tl.float32)
    places = (first, rows, rows < n_rows)
    _store_turned((even, odd), which, places, rotation, q, (cache, slots, strides[1]), SHAPE)


@triton.jit
def _attend_chunk(
    q: tl.tensor,
    cache: tl.tensor,
    table: tl.tensor,
    span: tl.tensor,
    cache_stride: tl.tensor,
    head: tl.tensor,
    SHAPE: tl.constexpr,
) -> tl.tensor:
    """Attention of q (D,) over positions span[0] .. span[1]: weighted values (D,), highest score, weight."""
    E: tl.constexpr = SHAPE[0]
    D: tl.constexpr = SHAPE[1]
    d = tl.arange(0, triton.next_power_of_2(D))
    highest = tl.full((), float("-inf"), tl.float32)
    weight = tl.zeros((), tl.float32)
    values = tl.zeros((triton.next_power_of_2(D),), tl.float32)
    for start in tl.range(span[0], span[1], PAGE):
        block = tl.load(table + start // PAGE).to(tl.int64)
        read = start + tl.arange(0, PAGE) < span[1]
        slots = block * PAGE + tl.arange(0, PAGE)
        places = cache + slots[:, None] * E + (head * D + d)[None, :]
        known = read[:, None] & (d < D)[None, :]
        k = tl.load(places, mask=known, other=0.0).to(tl.float32)
        v = tl.load(places + cache_stride, mask=known, other=0.0).to(tl.float32)
        scores = tl.where(read, tl.sum(q[None, :] * k, 1), float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 0))  # finite: a page has a position that was read
        parts = tl.exp(scores - higher)
        fade = tl.exp(highest - higher)
        values = values * fade + tl.sum(parts[:, None] * v, 0)
        weight = weight * fade + tl.sum(parts, 0)
        highest = higher
    return values, highest, weight


@triton.jit
def _join_chunks(
    scratch: tl.tensor, first: tl.tensor, n: tl.tensor, D: tl.constexpr, CHUNKS: tl.constexpr
) -> tl.tensor:
    """Joins n partial results of a row and head into one (D,); sums in the order of positions."""
    chunk = tl.arange(0, triton.next_power_of_2(CHUNKS))
    d = tl.arange(0, triton.next_power_of_2(D))
    known = chunk < n
    places = scratch + (first + chunk).to(tl.int64) * (D + 2)
    highest = tl.load(places + D, mask=known, other=float("-inf"), cache_modifier=".cg")
    weight = tl.load(places + D + 1, mask=known, other=0.0, cache_modifier=".cg")
    shares = tl.exp(highest - tl.max(highest, 0))
    mask = known[:, None] & (d < D)[None, :]
    values = tl.load(places[:, None] + d[None, :], mask=mask, other=0.0, cache_modifier=".cg")
    return tl.sum(values * shares[:, None], 0) / tl.sum(weight * shares, 0)


@triton.jit
def _attention(
    pid: tl.tensor,
    q: tl.tensor,
    cache: tl.tensor,
    rows: tl.tensor,
    scratch: tl.tensor,
    attended: tl.tensor,
    SHAPE: tl.constexpr,
    CHUNKS: tl.constexpr,
) -> None:
    """One chunk of one row and head; the last of them to be done joins them.

    cache: (its tensor, stride of values after keys). rows: (table (B, W), positions (B,), W).
    scratch: (values, highest, weight of each chunk; (B, H) how many are done, 0 before and after).
    """
    E: tl.constexpr = SHAPE[0]
    D: tl.constexpr = SHAPE[1]
    H: tl.constexpr = E // D
    chunk = pid % CHUNKS
    owner = pid // CHUNKS  # row and head
    row = owner // H
    head = owner % H
    length = tl.load(rows[1] + row).to(tl.int32) + 1
    n = (length + CHUNK - 1) // CHUNK
    d = tl.arange(0, triton.next_power_of_2(D))
    if chunk < n:
        query = tl.load(q + row.to(tl.int64) * E + head * D + d, mask=d < D, other=0.0).to(tl.float32)
        span = (chunk * CHUNK, tl.minimum(length, (chunk + 1) * CHUNK))
        table = rows[0] + row.to(tl.int64) * rows[2]
        values, highest, weight = _attend_chunk(
            query / tl.sqrt(D * 1.0), cache[0], table, span, cache[1], head, SHAPE
        )
        target = attended + row.to(tl.int64) * E + head * D + d
        if n == 1:
            tl.store(target, values / weight, mask=d < D)
        else:
            places = scratch[0] + pid.to(tl.int64) * (D + 2)
            tl.store(places + d, values, mask=d < D)
            tl.store(places + D, highest)
            tl.store(places + D + 1, weight)
            tl.debug_barrier()  # every thread has stored before one of them counts the chunk as done
            done = tl.atomic_add(scratch[1] + owner, 1)
            if done == n - 1:
                tl.store(target, _join_chunks(scratch[0], owner * CHUNKS, n, D, CHUNKS), mask=d < D)
                tl.store(scratch[1] + owner, 0)


@triton.jit
def attention_kernel(
    q: tl.tensor,
    cache: tl.tensor,
    table: tl.tensor,
    positions: tl.tensor,
    scratch: tl.tensor,
    attended: tl.tensor,
    cache_stride: tl.tensor,
    SHAPE: tl.constexpr,
    BLOCKS: tl.constexpr,
) -> None:
    """q (B, E) and the cache -> attended (B, E). SHAPE: (E, D). Grid: B H ceil(32 BLOCKS / CHUNK)."""
    CHUNKS: tl.constexpr = (BLOCKS * PAGE + CHUNK - 1) // CHUNK
    reading = (table, positions, BLOCKS)
    _attention(tl.program_id(0), q, (cache, cache_stride), reading, scratch, attended, SHAPE, CHUNKS)


@triton.jit(do_not_specialize=["n_rows"])
def attention_fc_in_kernel(
    h: tl.tensor,
    q: tl.tensor,
    cache: tl.tensor,
    table: tl.tensor,
    positions: tl.tensor,
    scratch: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    attended: tl.tensor,
    inner: tl.tensor,
    n_rows: tl.tensor,
    cache_stride: tl.tensor,
    SHAPE: tl.constexpr,
    TILE: tl.constexpr,
    FORMAT: tl.constexpr,
    BLOCKS: tl.constexpr,
) -> None:
    """q (B, E) and the cache -> attended (B, E); h (B, E) -> inner (B, F), after tanh-GELU.

    SHAPE: (E, D, F). BLOCKS: of a row's table. Grid: B H ceil(32 BLOCKS / CHUNK) attention programs, which
    start first, then ceil(F / OUTPUTS) times the row tiles.
    """
    E: tl.constexpr = SHAPE[0]
    F: tl.constexpr = SHAPE[2]
    CHUNKS: tl.constexpr = (BLOCKS * PAGE + CHUNK - 1) // CHUNK
    n_attention = n_rows * (E // SHAPE[1]) * CHUNKS
    pid = tl.program_id(0)
    if pid < n_attention:
        reading = (table, positions, BLOCKS)
        _attention(pid, q, (cache, cache_stride), reading, scratch, attended, SHAPE, CHUNKS)
    else:
        tiles = (n_rows + TILE[1] - 1) // TILE[1]
        pid_n = (pid - n_attention) // tiles
        places = tile_places(pid_n, (pid - n_attention) % tiles, n_rows, TILE)
        outputs, rows, live, _ = places
        acc = product(h, weight, places, None, None, F, E, TILE, FORMAT)
        y = acc + tl.load(bias + outputs, mask=outputs < F, other=0.0).to(tl.float32)[:, None]
        u = 0.7978845608028654 * (y + 0.044715 * y * y * y)  # sqrt(2 / pi)
        target = inner + rows[None, :].to(tl.int64) * F + outputs[:, None]
        # y (1 + tanh u) / 2 = y sigmoid(2 u); where exp overflows the quotient is 0, as it should be.
        tl.store(target, y / (1.0 + tl.exp(-2.0 * u)), mask=(outputs < F)[:, None] & live[None, :])


@triton.jit(do_not_specialize=["n_rows"])
def out_kernel(
    x: tl.tensor,
    attended: tl.tensor,
    inner: tl.tensor,
    weights: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    sums: tl.tensor,
    n_rows: tl.tensor,
    SHAPE: tl.constexpr,
    TILE: tl.constexpr,
    FORMAT: tl.constexpr,
) -> None:
    """y = x + out_proj(attended) + fc_out(inner), (B, E), and its sums for the next LayerNorm.

    weights: of out_proj and of fc_out. SHAPE: (E, D, F). Grid: ceil(E / OUTPUTS), row tiles.
    """
    E: tl.constexpr = SHAPE[0]
    F: tl.constexpr = SHAPE[2]
    places = tile_places(tl.program_id(0), tl.program_id(1), n_rows, TILE)
    outputs, rows, live, _ = places
    acc = product(attended, weights[0], places, None, None, E, E, TILE, FORMAT)
    acc += product(inner, weights[1], places, None, None, E, F, TILE, FORMAT)
    known = (outputs < E)[:, None] & live[None, :]
    target = rows[None, :].to(tl.int64) * E + outputs[:, None]
    acc += tl.load(bias + outputs, mask=outputs < E, other=0.0).to(tl.float32)[:, None]
    acc += tl.load(x + target, mask=known, other=0.0).to(tl.float32)
    rounded = acc.to(y.dtype.element_ty)
    tl.store(y + target, rounded, mask=known)
    _store_sums(sums, tl.program_id(0), rounded.to(tl.float32), outputs, rows, n_rows, E)
