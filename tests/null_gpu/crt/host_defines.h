/* In place of CUDA's header of this name, which PyPI's runtime lacks: what driver_types.h needs of it. */
#define __device_builtin__
#define CUDARTAPI
#define CUDART_CB
#define __align__(n) __attribute__((aligned(n)))
#define __builtin_align__(n) __align__(n)
