/* The kernel as a library for the CPU. */

#define EMULATION "emulate.h"
#include "lenet.cu"

static const Arguments *arguments;

extern "C" int argument_bytes() { return sizeof(Arguments); }
extern "C" int shared_bytes() { return sizeof(Shared); }
extern "C" int workspace_floats(int images, int blocks) { return images * KEPT + blocks * PARTIAL; }

extern "C" int run_kernel(const Arguments *a, int blocks, int order, int relu, int maximum, int optimizer) {
  arguments = a, RELU = relu, MAXIMUM = maximum, OPTIMIZER = optimizer;
  return run(blocks, CLUSTER, THREADS, sizeof(Shared), order, [] { train(*arguments); });
}
