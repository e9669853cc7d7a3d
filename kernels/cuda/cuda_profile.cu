/* cuda_profile.cu - the time on the device: events between kernels. An event is made when its
 * stamp is first noted, so that devices that measure nothing hold few.
 *
 * Ranges go to NVTX, whose calls return at once unless the process was started by a profiler. */
#include "kernels/cuda/cuda.h"

#include <nvtx3/nvToolsExt.h>

void cuda_stamp(struct dev *dev, int32_t i) {
    struct cuda_dev *cuda = cuda_of(dev);
    cudaEvent_t *stamp = &cuda->stamps[i];
    if (!*stamp && !cuda_ok(cuda, cudaEventCreate(stamp), "an event")) return;
    cuda_ok(cuda, cudaEventRecord(*stamp, cuda->stream), "a time stamp");
}

double cuda_stamp_ns(struct dev *dev, int32_t from, int32_t to) {
    struct cuda_dev *cuda = cuda_of(dev);
    float ms = 0;
    if (!cuda->stamps[from] || !cuda->stamps[to]) return 0; /* they could not be made */
    if (!cuda_ok(cuda, cudaEventElapsedTime(&ms, cuda->stamps[from], cuda->stamps[to]), "time stamps"))
        return 0;
    return (double)ms * 1e6;
}

void cuda_profile_close(struct cuda_dev *cuda) {
    for (int i = 0; i < N_STAMPS; i++)
        if (cuda->stamps[i]) cudaEventDestroy(cuda->stamps[i]);
}

void cuda_range_push(const char *name) { nvtxRangePushA(name); }

void cuda_range_pop(void) { nvtxRangePop(); }
