/* The null GPU's cuDNN, as far as it answers with numbers: everything else only counts its calls.
 *
 * NULL_WORKSPACE_MIB is what each convolution asks for (default 0).
 */
#include "null_gpu.h"
#include <stddef.h>
#include <string.h>

/* cudnnConvolutionFwdAlgoPerf_t and its two siblings, which have the same fields. */
typedef struct {
    int algorithm, status;
    float time;
    size_t memory;
    int determinism, math_type, reserved[3];
} Performance;

static size_t workspace(void) { return null_setting("NULL_WORKSPACE_MIB", 0) * (1 << 20); }

/* One algorithm: number 1, which is deterministic. */
static int one_algorithm(int *returned, Performance *found) {
    memset(found, 0, sizeof *found);
    found->algorithm = found->determinism = 1;
    found->memory = workspace();
    *returned = 1;
    return 0;
}

#define CONVOLUTION(KIND)                                                                                                 \
    int cudnnFindConvolution##KIND##Algorithm(void *handle, void *a, void *b, void *c, void *d, int requested,             \
                                              int *returned, Performance *found) {                                         \
        return one_algorithm(returned, found);                                                                             \
    }                                                                                                                      \
    int cudnnGetConvolution##KIND##Algorithm_v7(void *handle, void *a, void *b, void *c, void *d, int requested,           \
                                                int *returned, Performance *found) {                                       \
        return one_algorithm(returned, found);                                                                             \
    }                                                                                                                      \
    int cudnnGetConvolution##KIND##AlgorithmMaxCount(void *handle, int *count) {                                           \
        *count = 1;                                                                                                        \
        return 0;                                                                                                          \
    }                                                                                                                      \
    int cudnnGetConvolution##KIND##WorkspaceSize(void *handle, void *a, void *b, void *c, void *d, int algorithm,          \
                                                 size_t *size) {                                                           \
        *size = workspace();                                                                                               \
        return 0;                                                                                                          \
    }

CONVOLUTION(Forward)
CONVOLUTION(BackwardData)
CONVOLUTION(BackwardFilter)

int cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(void *handle, int mode, int operations, void *x, void *z, void *y,
                                                             void *scale, void *activation, size_t *size) {
    *size = 0;
    return 0;
}

int cudnnGetBatchNormalizationBackwardExWorkspaceSize(void *handle, int mode, int operations, void *x, void *y, void *dy,
                                                      void *dz, void *dx, void *scale, void *activation, size_t *size) {
    *size = 0;
    return 0;
}

int cudnnGetBatchNormalizationTrainingExReserveSpaceSize(void *handle, int mode, int operations, void *activation, void *x,
                                                         size_t *size) {
    *size = 0;
    return 0;
}

int cudnnGetReductionWorkspaceSize(void *handle, void *reduction, void *a, void *c, size_t *size) {
    *size = 4096;
    return 0;
}

int cudnnDropoutGetStatesSize(void *handle, size_t *size) {
    *size = 1024;
    return 0;
}

int cudnnGetTensor4dDescriptor(void *descriptor, int *type, int *n, int *c, int *h, int *w, int *n_stride, int *c_stride,
                               int *h_stride, int *w_stride) {
    *type = 0;
    *n = *c = *h = *w = *n_stride = *c_stride = *h_stride = *w_stride = 1;
    return 0;
}
