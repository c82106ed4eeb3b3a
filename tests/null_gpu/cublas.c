/* The null GPU's cuBLAS, as far as it answers with numbers. */

int cublasGetMathMode(void *handle, int *mode) {
    *mode = 0;
    return 0;
}
