/* The kernels for the architecture's baseline: SSE2 on x86-64, NEON on arm64. */

#include "common.h"

#define VL 4
#define NAME(function) function##_baseline
#include "kernels.h"
