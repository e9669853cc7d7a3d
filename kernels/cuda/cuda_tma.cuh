/* cuda_tma.cuh - the tensor memory accelerator of compute capability 9.0: boxes of a matrix
 * into shared memory, and the barriers that tell when they are there.
 *
 * A box is some rows of 64 columns of 16-bit numbers: 128 bytes a row, whose chunks of 16 are
 * swapped (CU_TENSOR_MAP_SWIZZLE_128B: chunk ^ row % 8), so that eight rows of one column lie
 * in different banks. It begins at a multiple of 1,024 bytes. What lies outside of the matrix
 * arrives as zeros, and counts among the bytes that a barrier expects. */
#ifndef BATCHD_KERNELS_CUDA_TMA_CUH
#define BATCHD_KERNELS_CUDA_TMA_CUH

#include "kernels/cuda/cuda.h"

#include <cuda.h>

enum { TMA_COLUMNS = 64, TMA_ROW_BYTES = TMA_COLUMNS * 2, TMA_ALIGNMENT = 1024 };

/* Describe rows x columns of 16-bit numbers in device memory, fetched in boxes of box_rows x 64;
 * false where the driver cannot. ld: numbers from row to row, a multiple of 8. */
bool tma_map(CUtensorMap *map, enum dtype dtype, const void *data, int64_t rows, int64_t columns, int64_t ld,
             int box_rows);

/* A barrier's phase ends when `count` threads have arrived and all expected bytes have come;
 * its parity tells phases apart. */
__device__ __forceinline__ void barrier_init(uint32_t barrier, uint32_t count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

__device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
                 "@!p bra again;\n"
                 "}" ::"r"(barrier),
                 "r"(parity)
                 : "memory");
}

/* A box at (row, column) of a map. */
__device__ __forceinline__ void tma_fetch(uint32_t to, const CUtensorMap *map, int column, int row,
                                          uint32_t barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                 " [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
                 "l"(map), "r"(column), "r"(row), "r"(barrier)
                 : "memory");
}

/* Bytes as they are, a multiple of 16 from a multiple of 16 to one. */
__device__ __forceinline__ void bulk_fetch(uint32_t to, const void *from, uint32_t bytes, uint32_t barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(barrier)
                 : "memory");
}

/* ---------------------------------------------------------------- two blocks as a cluster */

__device__ __forceinline__ uint32_t cluster_rank() {
    uint32_t rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

/* All threads of all its blocks have come here. */
__device__ __forceinline__ void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release;\n"
                 "barrier.cluster.wait.acquire;" ::
                     : "memory");
}

/* At the barrier that lies in block `rank` where `barrier` lies in this one. */
__device__ __forceinline__ void barrier_arrive_in(uint32_t barrier, uint32_t rank) {
    asm volatile("{\n"
                 ".reg .b32 there;\n"
                 "mapa.shared::cluster.u32 there, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
                 "}" ::"r"(barrier),
                 "r"(rank)
                 : "memory");
}

/* tma_fetch into both blocks, at the same place; each one's barrier is told. */
__device__ __forceinline__ void tma_fetch_both(uint32_t to, const CUtensorMap *map, int column, int row,
                                               uint32_t barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                 ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
                 "l"(map), "r"(column), "r"(row), "r"(barrier), "h"((uint16_t)3)
                 : "memory");
}

#endif
