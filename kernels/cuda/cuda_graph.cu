/* cuda_graph.cu - small steps as CUDA graphs: one launch instead of hundreds.
 *
 * A graph is recorded from the stream and launched by its key. Its kernels read what the step
 * is from memory, so a step's arrays must lie where they lay when it was recorded
 * (cuda_step.cu keeps them in one place). */
#include "kernels/cuda/cuda.h"

#include "base/mem.h"

#include <assert.h>
#include <stdlib.h>

struct cuda_graph {
    uint64_t key;
    cudaGraphExec_t exec;
    struct cuda_graph *next;
};

static struct cuda_graph *find_graph(const struct cuda_dev *cuda, uint64_t key) {
    struct cuda_graph *g = cuda->graphs;
    while (g && g->key != key) g = g->next;
    return g;
}

bool cuda_replay(struct dev *dev, uint64_t key) {
    struct cuda_dev *cuda = cuda_of(dev);
    struct cuda_graph *g = find_graph(cuda, key);
    return g && cuda_ok(cuda, cudaGraphLaunch(g->exec, cuda->stream), "a graph");
}

void cuda_record(struct dev *dev) {
    struct cuda_dev *cuda = cuda_of(dev);
    assert(!cuda->is_recording);
    cuda->is_recording =
        cuda_ok(cuda, cudaStreamBeginCapture(cuda->stream, cudaStreamCaptureModeThreadLocal), "a graph");
}

static void add_graph(struct cuda_dev *cuda, uint64_t key, cudaGraphExec_t exec) {
    struct cuda_graph *g = (struct cuda_graph *)mem_zalloc(1, sizeof *g);
    *g = {key, exec, cuda->graphs};
    cuda->graphs = g;
}

void cuda_record_end(struct dev *dev, uint64_t key) {
    struct cuda_dev *cuda = cuda_of(dev);
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    if (!cuda->is_recording) return;
    cuda->is_recording = false;
    if (cuda_ok(cuda, cudaStreamEndCapture(cuda->stream, &graph), "a graph") &&
        cuda_ok(cuda, cudaGraphInstantiate(&exec, graph, 0), "a graph")) {
        add_graph(cuda, key, exec);
        cuda_ok(cuda, cudaGraphLaunch(exec, cuda->stream), "a graph");
    }
    if (graph) cudaGraphDestroy(graph);
}

void cuda_graphs_close(struct cuda_dev *cuda) {
    while (cuda->graphs) {
        struct cuda_graph *g = cuda->graphs;
        cuda->graphs = g->next;
        cudaGraphExecDestroy(g->exec);
        free(g);
    }
}
