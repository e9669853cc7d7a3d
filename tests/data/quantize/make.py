#!/usr/bin/env python3
"""Write bitsandbytes.txt, formulas.txt, tables.txt and means.txt, what test_quantize.c compares with,
and products.txt, which test_op_outliers.c does.

Needs torch, numpy and bitsandbytes (made with 0.50.2, torch 2.15, on a CPU with AVX2).
Matrices are not stored: random_matrix() here and in tests/aid_matrix.c make the same numbers
from a seed. A line of a fixture is

  kind dtype rows cols block seed | hashes

each hash being the first 16 hex digits of the SHA-256 of an array's bytes, or "-".
"""
import hashlib
import struct

import bitsandbytes.functional as F
import numpy as np
import torch

torch.set_num_threads(1)


def random_matrix(rows, cols, seed):
    """About normal, rows and columns of uneven size: SplitMix64 of seed and index, four 16-bit
    parts added up, times a power of two by row and column. Exact in f32."""
    i = np.arange(rows * cols, dtype=np.uint64)
    with np.errstate(over="ignore"):
        z = (i + np.uint64(1) + (np.uint64(seed) << np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    parts = sum(((z >> np.uint64(16 * k)) & np.uint64(0xFFFF)).astype(np.int64) for k in range(4))
    x = (parts - 2 * 65535).astype(np.float64).reshape(rows, cols)
    power = np.arange(rows)[:, None] % 3 + np.arange(cols)[None, :] // 7 % 2
    return (x * 2.0 ** (-20.0 + power)).astype(np.float32)


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def digest(a):
    if isinstance(a, torch.Tensor):
        a = a.contiguous().view(torch.uint8).numpy()
    return hashlib.sha256(np.ascontiguousarray(a).tobytes()).hexdigest()[:16]


def line(kind, dtype, rows, cols, block, seed, *arrays):
    hashes = " ".join("-" if a is None else digest(a) for a in arrays)
    return f"{kind} {dtype} {rows} {cols} {block} {seed} {hashes}\n"


def package(out):
    """packed or int8 | absmax, its codes, or SCB | absmax2 | offset | dequantized f32"""
    shapes = [(64, 64), (48, 128), (17, 192), (128, 96), (96, 256), (33, 320), (160, 160), (7, 1024), (256, 512),
              (1, 64), (64, 640), (30, 64), (80, 176), (16, 2048), (100, 448), (72, 72), (512, 128), (320, 384),
              (5, 64), (640, 384)]
    for seed, (rows, cols) in enumerate(shapes):
        dtype = list(DTYPES)[seed % 3]
        block = (64, 64, 64, 32, 64, 64, 128, 64, 4096, 64)[seed % 10]
        w = torch.from_numpy(random_matrix(rows, cols, seed)).to(DTYPES[dtype])
        f32 = w.float()
        while rows * cols % block:
            block //= 2
        packed, s = F.quantize_4bit(w, quant_type="nf4", blocksize=block)
        back = F.dequantize_4bit(*F.quantize_4bit(f32, quant_type="nf4", blocksize=block))
        out.write(line("nf4", dtype, rows, cols, block, seed, packed, s.absmax, None, None, back))
        packed, s = F.quantize_4bit(w, quant_type="nf4", blocksize=block, compress_statistics=True)
        back = F.dequantize_4bit(*F.quantize_4bit(f32, quant_type="nf4", blocksize=block, compress_statistics=True))
        offset = s.offset.reshape(1)
        out.write(line("nf4-dq", dtype, rows, cols, block, seed, packed, s.absmax, s.state2.absmax, offset, back))
        q, scb, _ = F.int8_vectorwise_quant(w.to(torch.float16))
        out.write(line("int8", dtype, rows, cols, 0, seed, q, scb, None, None, F.int8_vectorwise_dequant(q, scb)))
        # Rows of activations by themselves; numbers of 6.0 and above are outliers.
        x = torch.from_numpy(random_matrix(rows, cols, seed)).to(torch.float16) * 8
        each = [F.int8_vectorwise_quant(row[None], threshold=6.0) for row in x]
        q, scale = torch.cat([e[0] for e in each]), torch.cat([e[1] for e in each])
        out.write(line("int8-activation", "float16", rows, cols, 0, seed, q, scale, None, None, None))
        # All rows at once: a column in which one has an outlier is out of all.
        q, scale, columns = F.int8_vectorwise_quant(x, threshold=6.0)
        is_out = torch.zeros(cols, dtype=torch.uint8).index_fill(0, columns, 1)
        out.write(line("int8-batch", "float16", rows, cols, 0, seed, q, scale, is_out, None, None))


# What the formats say, for sizes that leave a part of a block or of a byte, and for fp4,
# whose thresholds the package's CPU code rounds.
FP4_T = [(0.8333333, 3), (0.583333, 2), (0.4166667, 5), (0.29166667, 4), (0.20833333, 7), (0.0859375, 6),
         (0.00260417, 1)]
NF4 = F.get_4bit_type("nf4", device="cpu").numpy()
NF4_T = (NF4[1:] + NF4[:-1]) / np.float32(2)
FP4 = np.float32([0, 0.005208333333, 0.66666667, 1, 0.33333333, 0.5, 0.16666667, 0.25])
FP4 = np.concatenate([FP4, -FP4])


def code_of(kind, x):
    if kind == "nf4":
        return int((x > NF4_T).sum())
    for t, c in FP4_T:
        if abs(x) > np.float32(t):
            return c + 8 * (x < 0)
    return 8 * int(x < 0)


def formula(kind, w, block):
    flat = w.reshape(-1)
    n = len(flat)
    absmax = np.float32([np.abs(flat[b : b + block]).max() for b in range(0, n, block)])
    q = [code_of(kind, flat[i] * (np.float32(1) / absmax[i // block])) for i in range(n)]
    back = (NF4 if kind == "nf4" else FP4)[q] * np.repeat(absmax, block)[:n]
    q.append(code_of(kind, 0))
    packed = np.uint8([q[i] << 4 | q[i + 1] for i in range(0, n, 2)])
    return packed, absmax, None, None, back.astype(np.float32)


def fp8(w):
    scale = np.float32(np.abs(w).max(axis=1) / np.float32(448))
    x = torch.from_numpy(w * (np.float32(1) / scale)[:, None]).clamp(-448, 448)
    q = x.to(torch.float8_e4m3fn)
    back = q.float().numpy() * scale[:, None]
    return q.view(torch.uint8), scale, None, None, back


def formulas(out):
    shapes = [(1, 1), (1, 2), (3, 5), (1, 63), (1, 65), (7, 19), (16, 64), (31, 33), (64, 100), (5, 1023), (48, 256)]
    for seed, (rows, cols) in enumerate(shapes, 100):
        w = random_matrix(rows, cols, seed)
        for kind in ("nf4", "fp4"):
            for block in (32, 64, 256):
                out.write(line(kind, "float32", rows, cols, block, seed, *formula(kind, w, block)))
        out.write(line("fp8", "float32", rows, cols, 0, seed, *fp8(w)))


def tables(out):
    """name | hash of the numbers in f32, or of the codes"""
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    finite = np.sort(every[np.isfinite(every)])
    middles = ((finite[1:] + finite[:-1]) / 2).astype(np.float32)  # exact: ties
    near = np.concatenate([middles, np.nextafter(middles, np.float32(-1e9)), np.nextafter(middles, np.float32(1e9))])
    bf16 = (np.arange(65536, dtype=np.uint32) << 16).view(np.float32)
    bf16 = bf16[np.isfinite(bf16)]
    cast = lambda x: torch.from_numpy(x).clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8)
    out.write(f"nf4 {digest(NF4)}\n")
    out.write(f"dynamic {digest(F.create_dynamic_map())}\n")
    out.write(f"fp8-middles {digest(middles)}\n")
    out.write(f"fp8-of-middles {digest(cast(near))}\n")
    out.write(f"fp8-of-bfloat16 {digest(cast(bf16))}\n")


def means(out):
    """n seed | bits of torch's mean of that many numbers"""
    for n in [1, 3, 4, 7, 8, 9, 31, 32, 33, 63, 100, 511, 512, 1000, 2047, 2048, 2049, 3333, 10000, 16384, 20001, 30000]:
        x = torch.from_numpy(np.abs(random_matrix(1, n, n)).reshape(-1))
        out.write(f"{n} {n} {struct.unpack('<I', struct.pack('<f', x.mean().item()))[0]:08x}\n")


def rows_with_outliers(m, k, n_outliers, seed):
    """Outlier j is in row j % m, column (37 j + seed) % k, and of size 6 + 3 j: the first is 6.0."""
    x = random_matrix(m, k, seed) * 4
    for j in range(n_outliers):
        x[j % m, (37 * j + seed) % k] = (6 + 3 * j) * (-1) ** j
    return x


def products(out):
    """dtype m n k outliers seed | the columns, ascending | a line for each row of y[m, n]: twice n numbers, of the
    integers' part alone and of the whole. x is rows_with_outliers, w random_matrix of seed + 1, in int8."""
    shapes = [(4, 5, 64, 3), (2, 16, 96, 1), (7, 3, 130, 5), (1, 8, 64, 2), (5, 4, 1500, 9), (3, 6, 48, 0), (6, 16, 512, 4)]
    for seed, (m, n, k, n_outliers) in enumerate(shapes, 200):
        for dtype in DTYPES:
            x = torch.from_numpy(rows_with_outliers(m, k, n_outliers, seed)).to(DTYPES[dtype])
            cb, scb, _ = F.int8_vectorwise_quant(torch.from_numpy(random_matrix(n, k, seed + 1)).to(torch.float16))
            ca, sca, columns = F.int8_vectorwise_quant(x.clone(), threshold=6.0)
            whole, _ = torch.ops.bitsandbytes.int8_mixed_scaled_mm(x, ca, cb, sca, scb, columns)
            integers = torch.ops.bitsandbytes.int8_scaled_mm(ca, cb, sca, scb, dtype=x.dtype)
            out.write(f"{dtype} {m} {n} {k} {n_outliers} {seed} {len(columns)}\n")
            out.write(" ".join(str(c) for c in columns.tolist()) + "\n")
            for a, b in zip(integers.tolist(), whole.tolist()):
                out.write(" ".join(f"{v:.9g}" for v in a + b) + "\n")


if __name__ == "__main__":
    for name, write in (("bitsandbytes", package), ("formulas", formulas), ("tables", tables), ("means", means),
                        ("products", products)):
        with open(f"{__file__.rpartition('/')[0] or '.'}/{name}.txt", "w") as f:
            write(f)
