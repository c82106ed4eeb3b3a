/* The null GPU's management library: as many devices as NULL_GPUS says, by name. */
#include <stdlib.h>
#include <string.h>

static unsigned count(void) {
    const char *text = getenv("NULL_GPUS");
    return text ? atoi(text) : 4;
}

int nvmlInitWithFlags(unsigned flags) { return 0; }
int nvmlInit_v2(void) { return 0; }
int nvmlInit(void) { return 0; }
int nvmlShutdown(void) { return 0; }

int nvmlDeviceGetCount_v2(unsigned *devices) {
    *devices = count();
    return 0;
}

int nvmlDeviceGetCount(unsigned *devices) { return nvmlDeviceGetCount_v2(devices); }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    *handle = (void *)(size_t)(index + 1);
    return index < count() ? 0 : 2;
}

int nvmlDeviceGetHandleByIndex(unsigned index, void **handle) { return nvmlDeviceGetHandleByIndex_v2(index, handle); }

int nvmlDeviceGetName(void *handle, char *name, unsigned length) {
    strncpy(name, "Null V100", length);
    return 0;
}

const char *nvmlErrorString(int error) { return "an error"; }
