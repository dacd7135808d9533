"""The Triton kernels beside their twins in plain torch: in Triton's interpreter, and compiled on a GPU.

Shapes are small because the interpreter runs one program after the other in numpy.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

CARD = torch.cuda.is_available()
if not CARD:
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are defined
pytest.importorskip("triton", reason="the kernels need triton: pip install 'kogpt[triton]'")

from kogpt import gpu_linear, gpu_steps, torch_pass  # noqa: E402
from kogpt.config import ModelConfig  # noqa: E402
from kogpt.gpu_steps import GpuSteps  # noqa: E402
from kogpt.gpu_tiles import Tile, Tiles, key  # noqa: E402
from kogpt.model import GPTJ, Block, Linear, rotary_table, rotate  # noqa: E402
from kogpt.quantize import FORMATS, Quantized, parts, table  # noqa: E402
from kogpt.torch_cache import BLOCK, Paged, attend_paged  # noqa: E402
from kogpt.torch_linear import QuantizedLinear, plain_product  # noqa: E402
from kogpt.torch_pass import Layer  # noqa: E402
from kogpt.torch_weights import join_weights  # noqa: E402

DEVICE = torch.device("cuda" if CARD else "cpu")
Words = NDArray[np.uint32]
# E and F end within a tile, R < D, and 20 dimensions of a head are no power of two. Two chunks of keys.
ODD = ModelConfig(n_layers=2, n_heads=2, d_model=40, d_ff=70, n_vocab=50, n_ctx=320, rotary_dim=4)
ALIGNED = replace(ODD, d_model=64, d_ff=288)  # for codes; three turns of the loop, the last one shorter
HEAD_256 = ModelConfig(n_layers=1, n_heads=1, d_model=256, d_ff=32, n_vocab=50, n_ctx=64, rotary_dim=64)
HEAD_64 = ModelConfig(n_layers=1, n_heads=2, d_model=128, d_ff=32, n_vocab=50, n_ctx=64, rotary_dim=64)
# Beside codes, on a card: float32 takes ten seconds to compile there, and nothing uses it.
ACTIVATIONS = "float16" if CARD else "float32"
DTYPES = {"float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}


class PlainSteps:
    """The twins of the kernels: the same steps in plain torch."""

    def prepare(self, table: Tensor, positions: Tensor) -> Paged:
        return Paged.of(table, positions[:, None])

    def qkv(self, x: Tensor, layer: Layer) -> tuple[Tensor, Tensor]:
        h, attn = layer.block.ln_1(x), layer.block.attn
        q, k, v = (
            layer.project(linear, h).view(len(x), -1, attn.d_head)
            for linear in (attn.q_proj, attn.k_proj, attn.v_proj)
        )
        q, k = rotate(q, layer.rotation), rotate(k, layer.rotation)
        layer.cache.flatten(1, 2).index_copy_(1, layer.slots, torch.stack((k, v)))
        return h, q

    def attention_fc_in(self, h: Tensor, q: Tensor, layer: Layer) -> tuple[Tensor, Tensor]:
        attended = attend_paged(q[:, :, None], layer.cache, layer.places).reshape(h.shape)
        return attended, F.gelu(layer.block.mlp.fc_in(h), approximate="tanh")

    def out(self, x: Tensor, attended: Tensor, inner: Tensor, layer: Layer) -> Tensor:
        return x + layer.block.attn.out_proj(attended) + layer.block.mlp.fc_out(inner)


Steps = PlainSteps | GpuSteps | torch_pass.Steps


def codes(form: str, n: int, k: int, seed: int = 0) -> Quantized:
    """Random bytes of a format: every code and group scale occurs."""
    rng = np.random.default_rng(seed)
    kinds = parts("w", form, (n, k))
    low = -127 if form == "int8" else 0
    array = rng.integers(low, 128 if form == "int8" else 256, kinds["w"][1][1:])
    groups = rng.integers(0, 256, kinds["w.groups"][1]).astype(np.uint8) if form == "int4" else None
    scales = (0.01 + 0.02 * rng.random(n)).astype(np.float32) / k**0.5
    return Quantized(form, (n, k), array.astype(np.int8 if form == "int8" else np.uint8), groups, scales)


def quantized(form: str, n: int, k: int, bias: bool = True, product: Any = plain_product) -> QuantizedLinear:
    b = torch.randn(n, generator=torch.Generator().manual_seed(1)) if bias else None
    return QuantizedLinear(codes(form, n, k), b, DEVICE, product)


@dataclass
class Case:
    """A layer of one model with a cache that holds texts of the given lengths, less one token each."""

    config: ModelConfig
    model: GPTJ
    lengths: list[int]
    adapt: torch_pass.Adapt = torch_pass.unadapted

    def layer(self, steps: Steps, cache: Tensor, number: int = 0) -> Layer:
        width = self.config.n_ctx // BLOCK
        blocks = torch.arange(1, 1 + len(self.lengths) * width, device=DEVICE).view(-1, width)
        table = blocks.flip(1).contiguous()
        positions = torch.tensor(self.lengths, device=DEVICE) - 1
        own = table.gather(1, (positions // BLOCK)[:, None])[:, 0]
        rotation = rotary_table(positions, self.config.rotary_dim, torch.float32)
        return Layer(
            block_of(self.model, number),
            cache,
            (rotation[0].contiguous(), rotation[1].contiguous()),
            own * BLOCK + positions % BLOCK,
            table,
            positions,
            steps.prepare(table, positions),
            self.adapt,
        )

    def cache(self, dtype: torch.dtype) -> Tensor:
        n_blocks = 1 + len(self.lengths) * self.config.n_ctx // BLOCK
        shape = (2, n_blocks, BLOCK, self.config.n_heads, self.config.d_head)
        return torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(DEVICE, dtype)


def block_of(model: GPTJ, number: int) -> Block:
    block = model.transformer.h[number]
    assert isinstance(block, Block)
    return block


def made(config: ModelConfig, form: str, lengths: list[int], dtype: torch.dtype = torch.float32) -> Case:
    torch.manual_seed(0)
    model = GPTJ(config)
    for module in model.modules():
        if isinstance(module, Linear):
            torch.nn.init.normal_(module.weight, std=module.in_features**-0.5)
    for norm in (block_of(model, number).ln_1 for number in range(config.n_layers)):
        torch.nn.init.normal_(norm.weight, 1.0, 0.1)
        torch.nn.init.normal_(norm.bias)
    model = model.to(DEVICE, dtype).requires_grad_(False)
    if form != "float":
        for name, module in list(model.named_modules()):
            if isinstance(module, Linear) and name.startswith("transformer.h."):
                n, k = module.out_features, module.in_features
                model.set_submodule(
                    name, QuantizedLinear(codes(form, n, k), module.bias, DEVICE, plain_product)
                )
    return Case(config, model, lengths)


def tiles(config: ModelConfig, form: str, outputs: int = 32, inputs: int = 0) -> Tiles:
    """Small tiles for every kernel, so that a small shape takes several programs and turns of the loop."""
    inputs = inputs or {"float": 32, "int8": 128, "int4": 128}[form]  # int8: two slices
    e, f = config.d_model, config.d_ff
    shapes = {"qkv": (3 * e, e), "attention_fc_in": (f, e), "out": (e, e + f)}
    return Tiles({key(kernel, form, shape): Tile(outputs, inputs, 2, 2) for kernel, shape in shapes.items()})


def run(case: Case, steps: Steps, dtype: torch.dtype) -> Iterator[Tensor]:
    """Every output of every step of all layers, and the caches."""
    x = torch.randn(len(case.lengths), case.config.d_model, generator=torch.Generator().manual_seed(2))
    x = (3 * x + 1).to(DEVICE, dtype)
    places = None
    for number in range(case.config.n_layers):
        cache = case.cache(dtype)
        layer = case.layer(steps, cache, number)
        places = layer.places if places is None else places
        layer = replace(layer, places=places)
        h, q = steps.qkv(x, layer)
        attended, inner = steps.attention_fc_in(h, q, layer)
        x = steps.out(x, attended, inner, layer)
        yield from (h, q, cache[0], cache[1], attended, inner, x)


def compare(case: Case, steps: Steps, dtype: str) -> None:
    kind = getattr(torch, dtype)
    with torch.inference_mode():
        pairs = zip(run(case, steps, kind), run(case, PlainSteps(), kind), strict=True)
        for i, (found, expected) in enumerate(pairs):
            error = (found.float() - expected.float()).norm() / expected.float().norm()
            assert error <= DTYPES[dtype], (i, error)


def steps_of(config: ModelConfig, form: str) -> GpuSteps:
    return GpuSteps(config, tiles(config, form))


@pytest.mark.parametrize("form", ["float", *FORMATS])
def test_a_layer_is_that_of_plain_torch(form: str) -> None:
    config = ODD if form == "float" else replace(ALIGNED, n_layers=1)  # two: the sums of the first are read
    dtype = "float32" if form == "float" else ACTIVATIONS
    compare(made(config, form, [1, 257], getattr(torch, dtype)), steps_of(config, form), dtype)


@pytest.mark.parametrize(("joined", "adapted"), [(False, False), (True, False), (True, True)])
def test_steps_of_many_rows_are_those_of_plain_torch(
    joined: bool, adapted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_steps, "COLUMNS", 16)  # E ends within the last program's
    case = made(ODD, "float", [1, 257, 31])
    attn = block_of(case.model, 0).attn
    if joined:
        join_weights(attn)
    if adapted:  # one of q, k and v
        case.adapt = lambda linear, x, y: y + x.flip(-1) if linear is attn.k_proj else y
    compare(case, steps_of(ODD, "float").paged_steps(), "float32")


@pytest.mark.parametrize(
    ("config", "dtype", "length"),
    [(HEAD_256, "float16", 64), (HEAD_64, "float16", 33), (HEAD_64, "bfloat16", 32)],
    ids=["256", "64", "bfloat16"],
)
def test_a_layer_in_16_bits(config: ModelConfig, dtype: str, length: int) -> None:
    if dtype == "bfloat16" and not CARD:
        pytest.skip("Triton's interpreter takes the bits of bfloat16 for integers")
    case = made(config, "float", [length], getattr(torch, dtype))
    compare(case, GpuSteps(config, tiles(config, "float", 128, 128)), dtype)


def test_the_bits_of_a_row_do_not_depend_on_the_rows_beside_it() -> None:
    config = replace(ALIGNED, n_layers=1, n_heads=1, n_ctx=288)
    dtype = getattr(torch, ACTIVATIONS)
    case = made(config, "int4", [31, 257, 2], dtype)
    steps = steps_of(config, "int4")
    x = torch.randn(3, config.d_model, generator=torch.Generator().manual_seed(2)).to(DEVICE, dtype)
    with torch.inference_mode():
        layer = case.layer(steps, case.cache(dtype))
        whole = whole_layer(steps, x, layer)
        assert not layer.places.done.any()
        row = torch.tensor([1], device=DEVICE)
        own = replace(
            layer,
            rotation=(layer.rotation[0][row], layer.rotation[1][row]),
            slots=layer.slots[row],
            table=layer.table[row],
            positions=layer.positions[row],
            places=steps.prepare(layer.table[row], layer.positions[row]),
        )
        alone = whole_layer(steps, x[row], own)
    for together, single in zip(whole, alone, strict=True):
        assert torch.equal(together[row], single)


def whole_layer(steps: Steps, x: Tensor, layer: Layer) -> tuple[Tensor, ...]:
    h, q = steps.qkv(x, layer)
    attended, inner = steps.attention_fc_in(h, q, layer)
    return h, q, attended, inner, steps.out(x, attended, inner, layer)


@pytest.mark.parametrize("form", FORMATS)
def test_codes_are_read_as_files_hold_them(form: str) -> None:
    linear, expected = quantized(form, 19, 160), codes(form, 19, 160).unpack()
    plain = linear.integers().float() * linear.scales[:, None]
    assert np.array_equal(plain.cpu().numpy(), expected)
    assert np.array_equal(gpu_steps.unpacked(linear, torch.float32).cpu().numpy(), expected)
    assert linear.nbytes == codes(form, 19, 160).nbytes


@pytest.mark.parametrize("form", ["float", *FORMATS])
def test_a_product_is_that_of_plain_torch(form: str) -> None:
    k, inputs = (75, 32) if form == "float" else (288, 128)
    steps = GpuSteps(ODD, Tiles({key("linear", form, (39, k)): Tile(16, inputs, 2, 2)}))
    linear = quantized(form, 39, k) if form != "float" else Linear(k, 39, device=DEVICE)
    dtype = "float32" if form == "float" else ACTIVATIONS
    x = torch.randn(35, k, generator=torch.Generator().manual_seed(0)).to(DEVICE, getattr(torch, dtype))
    with torch.inference_mode():
        found = steps.product(x, linear)
        torch.testing.assert_close(found, linear(x), rtol=DTYPES[dtype], atol=DTYPES[dtype])
        for rows in (slice(34, 35), slice(3, 12), slice(1, 18)):  # 1, 2 and 4 tiles of 8 rows
            own = steps.product(x[rows], linear)
            torch.testing.assert_close(found[rows], own, rtol=1e-6, atol=1e-6)
            assert not CARD or torch.equal(found[rows], own)  # numpy's products follow the number of rows
        assert steps.product(x[:0], linear).shape == (0, 39)


@pytest.mark.parametrize("form", FORMATS)
def test_many_rows_go_through_the_library(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_steps, "LIBRARY_ROWS", 2)
    steps = GpuSteps(ODD, Tiles())
    linear = quantized(form, 20, 64, product=steps.product)
    x = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    torch.testing.assert_close(linear(x), plain_product(x.flatten(0, 1), linear).view(2, 3, 20))


@pytest.mark.parametrize("form", FORMATS)
def test_rows_of_codes_that_are_not_aligned_are_multiplied_by_torch(form: str) -> None:
    linear = quantized(form, 20, 33)
    x = torch.randn(3, 33, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    assert torch.equal(GpuSteps(ODD, Tiles()).product(x, linear), plain_product(x, linear))
    assert not gpu_steps.fits(ODD, form) and gpu_steps.fits(ALIGNED, form) and gpu_steps.fits(ODD, "float16")


def permuted(low: Words, high: Words, selector: Words) -> Words:
    """PTX's prmt.b32: byte i of the result is the one of (low, high) that four bits of the selector name."""
    both = low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)
    found = np.zeros_like(low)
    for i in range(4):
        place = selector >> np.uint32(4 * i) & np.uint32(15)
        assert (place < 8).all(), "the fourth bit would repeat a sign"
        byte = both >> (place.astype(np.uint64) * np.uint64(8)) & np.uint64(255)
        found |= byte.astype(np.uint32) << np.uint32(8 * i)
    return found


def subtracted(x: Words, y: Words) -> Words:
    difference: Words = (x.view(np.float16) - y.view(np.float16)).view(np.uint32)
    return difference


def combined(a: Words, b: Words, c: Words, table: Words) -> Words:
    assert (table == 0xEA).all(), "the truth table of a & b | c"
    return a & b | c


OPERATIONS: dict[str, Callable[..., Words]] = {
    "and.b32": np.bitwise_and,
    "or.b32": np.bitwise_or,
    "xor.b32": np.bitwise_xor,
    "shr.u32": np.right_shift,
    "prmt.b32": permuted,
    "lop3.b32": combined,
    "sub.rn.f16x2": subtracted,
    "mov.b32": lambda x: x,
}


def executed(program: str, given: list[Words]) -> NDArray[np.float16]:
    """Results of inline PTX on words: (words, results). Operands name the results before the words."""
    lines = [line.strip() for line in program.strip().removeprefix("{").removesuffix("}").split(";")]
    n_results = 2 * sum("{" in line for line in lines)
    registers = {f"${n_results + i}": words for i, words in enumerate(given)}
    results: list[NDArray[np.float16]] = []
    for line in lines:
        name, *operands = line.replace(",", " ").replace("{", " ").replace("}", " ").split() or [""]
        if "{" in line:  # a register in two halves
            assert name == "mov.b32" and operands[:2] == [f"${2 * len(results)}", f"${2 * len(results) + 1}"]
            results.append(registers[operands[2]].view(np.float16).reshape(-1, 2))
        elif name in OPERATIONS:
            values = [
                registers[operand]
                if operand in registers
                else np.full(len(given[0]), int(operand, 0), np.uint32)
                for operand in operands[1:]
            ]
            registers[operands[0]] = OPERATIONS[name](*values)
        else:
            assert name in ("", ".reg"), line
    return np.concatenate(results, 1)


def test_the_instructions_look_up_every_code_under_every_group_scale() -> None:
    rng = np.random.default_rng(0)
    entries = table()
    words = (entries.astype(np.int16) + 128).astype(np.uint8).view(np.uint32)  # (256, 4)
    read = np.stack([rng.permutation(256) for _ in range(4 * 256)]).astype(np.uint8).reshape(256, -1, 4)
    size = np.repeat(np.arange(256), read.shape[1])
    given = [np.ascontiguousarray(column) for column in words[size].T]
    found = executed(gpu_linear.NIBBLES.value, [read.reshape(-1, 4).copy().view(np.uint32)[:, 0], *given])
    codes = np.stack((read & 15, read >> 4), -1).reshape(len(size), 8)
    assert np.array_equal(found, entries[size[:, None], codes])


def test_the_instructions_read_every_byte() -> None:
    read = np.stack([np.roll(np.arange(256), i) for i in range(4)], 1).astype(np.uint8).view(np.int8)
    found = executed(gpu_linear.BYTES.value, [read.view(np.uint32)[:, 0]])
    assert np.array_equal(found, read)
