/* All kernels, for vectors of VL floats. NAME() adds the instruction set to a name. */
#ifndef SIA_KERNELS_H
#define SIA_KERNELS_H

#include "attend.h"
#include "backward.h"

const sia_kernels NAME(sia_kernels) = {forward, backward,      channel_mean, channel_mean_backward,
                                       gate,    gate_backward, attend};

#endif
