/* All kernels, for vectors of VL floats; NAME() tells the instruction sets apart. */

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (vi){__VA_ARGS__})
#endif

#include "vector.h"

#include "tile.h"

#include "pairs.h"

#include "take.h"

#include "forward.h"

#include "backward.h"

#include "gate.h"

const sia_kernels NAME(sia_kernels) = {forward, backward, channel_mean, channel_mean_backward, gate, gate_backward};
