/* aid_matrix.c - see aid_matrix.h. */
#include "tests/aid_matrix.h"
#include "base/mem.h"

#include <math.h>

float *random_matrix(int64_t rows, int64_t cols, uint64_t seed) {
    float *w = mem_zalloc((size_t)(rows * cols), sizeof *w);
    for (int64_t i = 0; i < rows * cols; i++) {
        uint64_t z = ((uint64_t)i + 1 + (seed << 32)) * 0x9E3779B97F4A7C15u;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
        z = z ^ (z >> 31);
        int64_t sum = -2 * 65535;
        for (int k = 0; k < 4; k++) sum += (int64_t)(z >> (16 * k) & 0xffff);
        w[i] = ldexpf((float)sum, (int)(-20 + i / cols % 3 + i % cols / 7 % 2));
    }
    return w;
}
