/* philox.h - Philox4x32-10, a random function of a key and a counter.
 *
 * Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC11).
 * A token's noise depends on (seed, position, token id) and on nothing else, so a
 * draw is the same in any slot, batch or run. */
#ifndef BATCHD_KERNELS_PHILOX_H
#define BATCHD_KERNELS_PHILOX_H

#include <stdint.h>

#ifdef __CUDACC__
#define PHILOX_FUNCTION static inline __host__ __device__
#else
#define PHILOX_FUNCTION static inline
#endif

struct philox_block {
    uint32_t word[4];
};

PHILOX_FUNCTION struct philox_block philox4x32(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0,
                                               uint32_t k1) {
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)c0 * 0xd2511f53u, b = (uint64_t)c2 * 0xcd9e8d57u;
        c0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)b;
        c2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)a;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    struct philox_block out = {{c0, c1, c2, c3}};
    return out;
}

#endif
