/* A stand-in for NCCL: ranks of one machine add up float arrays through shared memory.
 *
 * It has NCCL's rule that all ranks must reduce the same number of values: where a real NCCL would hang or mix up arrays,
 * this one says so and aborts.
 */
#include "null_gpu.h"
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define MOST_RANKS 8
#define PART (1 << 20) /* floats that a rank shows the others at once */
#define FLOAT 7        /* ncclFloat32 */
#define AVERAGE 4      /* ncclAvg */

typedef struct {
    int arrived, turn;
    size_t counts[MOST_RANKS];
    float values[MOST_RANKS][PART];
} Shared;

typedef struct {
    Shared *shared;
    int ranks, rank, turn;
} Communicator;

typedef struct {
    char name[128];
} UniqueId;

/* Returns once every rank has come here. */
static void meet(Communicator *comm) {
    int turn = comm->turn = !comm->turn;
    if (__atomic_add_fetch(&comm->shared->arrived, 1, __ATOMIC_SEQ_CST) == comm->ranks) {
        __atomic_store_n(&comm->shared->arrived, 0, __ATOMIC_SEQ_CST);
        __atomic_store_n(&comm->shared->turn, turn, __ATOMIC_SEQ_CST);
    }
    while (__atomic_load_n(&comm->shared->turn, __ATOMIC_SEQ_CST) != turn)
        sched_yield();
}

int ncclGetVersion(int *version) {
    *version = 21803;
    return 0;
}

int ncclGetUniqueId(UniqueId *id) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    memset(id, 0, sizeof *id);
    snprintf(id->name, sizeof id->name, "/null-nccl-%d-%ld", getpid(), now.tv_nsec);
    return 0;
}

int ncclCommInitRank(Communicator **made, int ranks, UniqueId id, int rank) {
    int file = shm_open(id.name, O_RDWR | O_CREAT, 0600);
    if (ranks > MOST_RANKS || file < 0 || ftruncate(file, sizeof(Shared)))
        return 1;
    Shared *shared = mmap(NULL, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    *made = malloc(sizeof **made);
    **made = (Communicator){shared, ranks, rank, 0};
    meet(*made);
    if (rank == 0)
        shm_unlink(id.name);
    return 0;
}

int ncclCommDestroy(Communicator *comm) {
    free(comm);
    return 0;
}

int ncclAllReduce(const float *from, float *to, size_t count, int type, int operation, Communicator *comm, void *stream) {
    null_count(__func__);
    Shared *shared = comm->shared;
    shared->counts[comm->rank] = count;
    meet(comm);
    for (int rank = 0; rank < comm->ranks; rank++)
        if (shared->counts[rank] != count || type != FLOAT) {
            fprintf(stderr, "null NCCL: rank %d reduces %zu values of type %d and rank %d reduces %zu\n", comm->rank, count, type,
                    rank, shared->counts[rank]);
            abort();
        }
    for (size_t start = 0; start < count; start += PART) {
        size_t size = count - start < PART ? count - start : PART;
        memcpy(shared->values[comm->rank], from + start, size * sizeof(float));
        meet(comm);
        for (size_t i = 0; i < size; i++) {
            float total = 0;
            for (int rank = 0; rank < comm->ranks; rank++)
                total += shared->values[rank][i];
            to[start + i] = operation == AVERAGE ? total / comm->ranks : total;
        }
        meet(comm);
    }
    return 0;
}

int ncclCommInitAll(void *comms, int devices, const int *list) { return 0; }
int ncclReduce(void) { return 0; }
int ncclBcast(void) { return 0; }
int ncclReduceScatter(void) { return 0; }
int ncclAllGather(void) { return 0; }
int ncclGroupStart(void) { return 0; }
int ncclGroupEnd(void) { return 0; }
const char *ncclGetErrorString(int error) { return "an error"; }
