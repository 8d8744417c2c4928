/* The kernels for what every processor of the architecture has: SSE2 on x86-64, NEON on arm64. */

#include "common.h"

#define VL 4
#define NAME(function) function##_baseline
#include "kernels.h"
