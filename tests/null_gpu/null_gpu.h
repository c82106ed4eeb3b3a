/* What the null GPU's libraries share. */
#ifndef NULL_GPU_H
#define NULL_GPU_H

/* Counts a call of a library under its name. */
void null_count(const char *name);

/* The number in an environment variable, or `fallback`. */
double null_setting(const char *name, double fallback);

#endif
