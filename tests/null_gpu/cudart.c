/* The null GPU's CUDA runtime: device memory is host memory, and kernels do nothing but are counted.
 *
 * NULL_GIB bounds the memory of a device (default 80), NULL_GPUS is their number (default 4).
 */
#include "null_gpu.h"
#include <driver_types.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define GIB 1073741824.0
#define PAGE 4096
/* What no check looks at need not be moved: it saves minutes and memory. */
#define LARGE_COPY ((size_t)16 << 20)
#define LARGE_FILL ((size_t)4 << 20)

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

double null_setting(const char *name, double fallback) {
    const char *text = getenv(name);
    return text && *text ? atof(text) : fallback;
}

/* --- Counters ---------------------------------------------------------------------------------------------------- */

typedef struct {
    const void *key; /* of a kernel: its host function; of a call: NULL */
    char *name;
    long count;
} Counter;

typedef struct {
    Counter *entries;
    size_t size, used; /* size is a power of two */
} Table;

static Table kernels, calls;

static uint64_t hashed(const void *key, const char *name) {
    uint64_t hash = 1469598103934665603ull;
    if (key)
        return ((uint64_t)key >> 4) * 0x9E3779B97F4A7C15ull;
    for (; *name; name++)
        hash = (hash ^ (unsigned char)*name) * 1099511628211ull;
    return hash;
}

static Counter *place_of(Table *table, const void *key, const char *name) {
    size_t at = hashed(key, name) >> 20 & (table->size - 1);
    while (table->entries[at].name && (key ? table->entries[at].key != key : strcmp(table->entries[at].name, name)))
        at = (at + 1) & (table->size - 1);
    return &table->entries[at];
}

static void grow(Table *table) {
    Table larger = {calloc(table->size ? 2 * table->size : 1024, sizeof(Counter)), table->size ? 2 * table->size : 1024, table->used};
    for (size_t i = 0; i < table->size; i++)
        if (table->entries[i].name)
            *place_of(&larger, table->entries[i].key, table->entries[i].name) = table->entries[i];
    free(table->entries);
    *table = larger;
}

/* The counter of a key or a name; it is made where there is none. */
static Counter *counter(Table *table, const void *key, const char *name) {
    if (2 * table->used >= table->size)
        grow(table);
    Counter *found = place_of(table, key, name);
    if (!found->name) {
        *found = (Counter){key, strdup(name), 0};
        table->used++;
    }
    return found;
}

void null_count(const char *name) {
    pthread_mutex_lock(&lock);
    counter(&calls, NULL, name)->count++;
    pthread_mutex_unlock(&lock);
}

/* --- Kernels ----------------------------------------------------------------------------------------------------- */

typedef struct {
    unsigned x, y, z;
} Dim3;
typedef struct {
    Dim3 grid, block;
    size_t shared;
    void *stream;
} Launch;

static __thread Launch pending[8];
static __thread int depth;
static long launches;

void **__cudaRegisterFatBinary(void *binary) {
    static void *handle[1];
    return handle;
}

void __cudaRegisterFatBinaryEnd(void **handle) {}
void __cudaUnregisterFatBinary(void **handle) {}
void __cudaRegisterVar(void **handle, char *host, char *device, const char *name, int ext, size_t size, int constant, int global) {}

void __cudaRegisterFunction(void **handle, const char *host, char *device, const char *name, int limit, void *thread_id,
                            void *block_id, void *block, void *grid, int *warp) {
    pthread_mutex_lock(&lock);
    counter(&kernels, host, name);
    pthread_mutex_unlock(&lock);
}

unsigned __cudaPushCallConfiguration(Dim3 grid, Dim3 block, size_t shared, void *stream) {
    pending[depth++] = (Launch){grid, block, shared, stream};
    return 0;
}

int __cudaPopCallConfiguration(Dim3 *grid, Dim3 *block, size_t *shared, void *stream) {
    Launch launch = pending[--depth];
    *grid = launch.grid, *block = launch.block, *shared = launch.shared, *(void **)stream = launch.stream;
    return 0;
}

int cudaLaunchKernel(const void *function, Dim3 grid, Dim3 block, void **arguments, size_t shared, void *stream) {
    pthread_mutex_lock(&lock);
    launches++;
    counter(&kernels, function, "?")->count++;
    pthread_mutex_unlock(&lock);
    return 0;
}

int cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *function) {
    memset(attributes, 0, sizeof *attributes);
    attributes->maxThreadsPerBlock = 1024;
    attributes->numRegs = 32;
    attributes->binaryVersion = attributes->ptxVersion = 70;
    return 0;
}

int cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *function, int size, size_t shared) {
    *blocks = 2;
    return 0;
}

int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *function, int size, size_t shared,
                                                           unsigned flags) {
    *blocks = 2;
    return 0;
}

/* --- Memory ------------------------------------------------------------------------------------------------------ */

typedef struct {
    void *start;
    size_t size;
} Block;

static Block *blocks;
static size_t block_count, block_room, in_use, peak;

static size_t capacity(void) { return null_setting("NULL_GIB", 80) * GIB; }
static size_t whole_pages(size_t size) { return size ? (size + PAGE - 1) / PAGE * PAGE : PAGE; }

int cudaMalloc(void **start, size_t size) {
    *start = NULL;
    pthread_mutex_lock(&lock);
    int status = cudaErrorMemoryAllocation;
    if (in_use + size <= capacity()) {
        /* Pages that nobody writes to take no memory. */
        int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        void *mapped = mmap(NULL, whole_pages(size), PROT_READ | PROT_WRITE, flags, -1, 0);
        if (mapped != MAP_FAILED) {
            if (block_count == block_room)
                blocks = realloc(blocks, (block_room = block_room ? 2 * block_room : 1024) * sizeof *blocks);
            blocks[block_count++] = (Block){*start = mapped, size};
            in_use += size;
            peak = in_use > peak ? in_use : peak;
            status = cudaSuccess;
        }
    }
    pthread_mutex_unlock(&lock);
    return status;
}

int cudaMallocManaged(void **start, size_t size, unsigned flags) { return cudaMalloc(start, size); }

int cudaFree(void *start) {
    pthread_mutex_lock(&lock);
    for (size_t i = block_count; start && i-- > 0;)
        if (blocks[i].start == start) {
            munmap(start, whole_pages(blocks[i].size));
            in_use -= blocks[i].size;
            blocks[i] = blocks[--block_count];
            break;
        }
    pthread_mutex_unlock(&lock);
    return 0;
}

int cudaHostAlloc(void **start, size_t size, unsigned flags) {
    *start = malloc(size);
    return 0;
}

int cudaFreeHost(void *start) {
    free(start);
    return 0;
}

int cudaMemGetInfo(size_t *available, size_t *total) {
    *total = capacity();
    *available = *total - in_use;
    return 0;
}

static const char *KINDS[] = {"host to host", "host to device", "device to host", "device to device", "default"};
static long copies[5];
static size_t copied[5];

/* Memory that no kernel has written to holds anything. What comes back to the host is made finite and moderate, so that
 * programs go their usual way: losses that are NaN would stop them. A single number is 1.5. */
static void moderate(void *start, size_t size) {
    uint32_t *words = start;
    for (size_t i = 0; i < size / 4; i++)
        if ((words[i] & 0x7fffffff) > 0x47800000) /* as a float above 65536, infinite or NaN */
            words[i] = 0x3f000000;
    if (size == 4)
        *(float *)start = 1.5f;
}

int cudaMemcpy(void *to, const void *from, size_t size, int kind) {
    pthread_mutex_lock(&lock);
    copies[kind]++;
    copied[kind] += size;
    pthread_mutex_unlock(&lock);
    if (kind == cudaMemcpyDeviceToDevice && size > LARGE_COPY)
        return 0;
    memcpy(to, from, size);
    if (kind == cudaMemcpyDeviceToHost && size % 4 == 0)
        moderate(to, size);
    return 0;
}

int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) { return cudaMemcpy(to, from, size, kind); }

int cudaMemcpyPeer(void *to, int receiver, const void *from, int sender, size_t size) {
    return cudaMemcpy(to, from, size, cudaMemcpyDeviceToDevice);
}

int cudaMemset(void *start, int value, size_t size) {
    null_count(__func__);
    if (size <= LARGE_FILL)
        memset(start, value, size);
    return 0;
}

int cudaMemsetAsync(void *start, int value, size_t size, void *stream) { return cudaMemset(start, value, size); }

/* --- Devices ----------------------------------------------------------------------------------------------------- */

static __thread int device;

static int device_count(void) {
    int total = null_setting("NULL_GPUS", 4), visible = 0;
    const char *list = getenv("CUDA_VISIBLE_DEVICES");
    if (!list)
        return total;
    char *copy = strdup(list), *rest = copy;
    for (char *part; (part = strtok_r(rest, ",", &rest));) {
        char *end;
        long number = strtol(part, &end, 10);
        if (end == part || number < 0 || number >= total)
            break;
        visible++;
    }
    free(copy);
    return visible;
}

int cudaGetDeviceCount(int *count) { return (*count = device_count()) ? cudaSuccess : cudaErrorNoDevice; }

int cudaGetDevice(int *number) {
    *number = device;
    return 0;
}

int cudaSetDevice(int number) {
    if (number < 0 || number >= device_count())
        return cudaErrorInvalidDevice;
    device = number;
    return 0;
}

/* Those of a V100, as far as NNabla asks. */
int cudaGetDeviceProperties_v2(struct cudaDeviceProp *properties, int number) {
    *properties = (struct cudaDeviceProp){
        .name = "Null V100",
        .totalGlobalMem = capacity(),
        .sharedMemPerBlock = 49152,
        .sharedMemPerMultiprocessor = 98304,
        .regsPerBlock = 65536,
        .regsPerMultiprocessor = 65536,
        .warpSize = 32,
        .maxThreadsPerBlock = 1024,
        .maxThreadsPerMultiProcessor = 2048,
        .maxThreadsDim = {1024, 1024, 64},
        .maxGridSize = {2147483647, 65535, 65535},
        .major = 7,
        .multiProcessorCount = 80,
    };
    return 0;
}

/* The older layout is a prefix of the newer one. */
int cudaGetDeviceProperties(void *properties, int number) {
    struct cudaDeviceProp whole;
    cudaGetDeviceProperties_v2(&whole, number);
    memcpy(properties, &whole, 600);
    return 0;
}

int cudaDeviceGetAttribute(int *value, int attribute, int number) {
    struct cudaDeviceProp p;
    cudaGetDeviceProperties_v2(&p, number);
    switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = p.maxThreadsPerBlock; break;
    case cudaDevAttrMaxBlockDimX: case cudaDevAttrMaxBlockDimY: case cudaDevAttrMaxBlockDimZ:
        *value = p.maxThreadsDim[attribute - cudaDevAttrMaxBlockDimX]; break;
    case cudaDevAttrMaxGridDimX: case cudaDevAttrMaxGridDimY: case cudaDevAttrMaxGridDimZ:
        *value = p.maxGridSize[attribute - cudaDevAttrMaxGridDimX]; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = p.sharedMemPerBlock; break;
    case cudaDevAttrWarpSize: *value = p.warpSize; break;
    case cudaDevAttrMaxRegistersPerBlock: *value = p.regsPerBlock; break;
    case cudaDevAttrMultiProcessorCount: *value = p.multiProcessorCount; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = p.maxThreadsPerMultiProcessor; break;
    case cudaDevAttrComputeCapabilityMajor: *value = p.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = p.minor; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = p.sharedMemPerMultiprocessor; break;
    case cudaDevAttrMaxRegistersPerMultiprocessor: *value = p.regsPerMultiprocessor; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = p.sharedMemPerMultiprocessor; break;
    case cudaDevAttrMaxBlocksPerMultiprocessor: *value = 32; break;
    default: *value = 1;
    }
    return 0;
}

int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0, *greatest = -5;
    return 0;
}

/* --- Streams and events: everything is done at once --------------------------------------------------------------- */

typedef struct {
    unsigned flags;
    int priority;
} Stream;

int cudaStreamCreateWithPriority(Stream **stream, unsigned flags, int priority) {
    *stream = malloc(sizeof **stream);
    **stream = (Stream){flags, priority};
    return 0;
}

int cudaStreamCreateWithFlags(Stream **stream, unsigned flags) { return cudaStreamCreateWithPriority(stream, flags, 0); }
int cudaStreamCreate(Stream **stream) { return cudaStreamCreateWithPriority(stream, 0, 0); }

int cudaStreamDestroy(Stream *stream) {
    free(stream);
    return 0;
}

int cudaStreamGetFlags(Stream *stream, unsigned *flags) {
    *flags = stream ? stream->flags : 0;
    return 0;
}

int cudaStreamGetPriority(Stream *stream, int *priority) {
    *priority = stream ? stream->priority : 0;
    return 0;
}

int cudaStreamAddCallback(Stream *stream, void (*callback)(Stream *, int, void *), void *data, unsigned flags) {
    callback(stream, 0, data);
    return 0;
}

int cudaEventCreateWithFlags(void **event, unsigned flags) {
    *event = malloc(1);
    return 0;
}

int cudaEventCreate(void **event) { return cudaEventCreateWithFlags(event, 0); }

int cudaEventDestroy(void *event) {
    free(event);
    return 0;
}

int cudaEventElapsedTime(float *milliseconds, void *first, void *second) {
    *milliseconds = 0;
    return 0;
}

/* --- Errors ------------------------------------------------------------------------------------------------------ */

const char *cudaGetErrorName(int error) { return error == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "an error"; }

const char *cudaGetErrorString(int error) {
    switch (error) {
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    default: return "an error";
    }
}

/* --- For the checks ---------------------------------------------------------------------------------------------- */

/* Start counting at zero, and the peak at what is in use. */
void null_reset(void) {
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < kernels.size; i++)
        kernels.entries[i].count = 0;
    for (size_t i = 0; i < calls.size; i++)
        calls.entries[i].count = 0;
    memset(copies, 0, sizeof copies);
    memset(copied, 0, sizeof copied);
    launches = 0;
    peak = in_use;
    pthread_mutex_unlock(&lock);
}

static void write_table(FILE *file, const char *name, const Table *table) {
    const char *comma = "";
    fprintf(file, ", \"%s\": [", name);
    for (size_t i = 0; i < table->size; i++)
        if (table->entries[i].name && table->entries[i].count) {
            fprintf(file, "%s[\"%s\", %ld]", comma, table->entries[i].name, table->entries[i].count);
            comma = ", ";
        }
    fprintf(file, "]");
}

/* Write all counters as JSON; sizes are in bytes. Returns 0, or -1 where the file cannot be written. */
int null_report(const char *path) {
    FILE *file = fopen(path, "w");
    if (!file)
        return -1;
    pthread_mutex_lock(&lock);
    fprintf(file, "{\"launches\": %ld, \"in use\": %zu, \"peak\": %zu, \"copies\": {", launches, in_use, peak);
    for (int kind = 0; kind < 5; kind++)
        fprintf(file, "%s\"%s\": [%ld, %zu]", kind ? ", " : "", KINDS[kind], copies[kind], copied[kind]);
    fprintf(file, "}");
    write_table(file, "kernels", &kernels);
    write_table(file, "calls", &calls);
    fprintf(file, "}\n");
    pthread_mutex_unlock(&lock);
    return fclose(file);
}
