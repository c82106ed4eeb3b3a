/* The null GPU's driver. NNabla asks it for virtual memory, which it does not have. */

#define NOT_SUPPORTED 801

int cuMemGetAllocationGranularity(void) { return NOT_SUPPORTED; }
int cuMemAddressReserve(void) { return NOT_SUPPORTED; }
int cuMemCreate(void) { return NOT_SUPPORTED; }

int cuGetErrorName(int error, const char **name) {
    *name = "not supported";
    return 0;
}

int cuGetErrorString(int error, const char **text) { return cuGetErrorName(error, text); }
