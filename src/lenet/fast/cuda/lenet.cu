/* LeNet's training, any number of steps in one launch: forward, backward and update, in float32.

Blocks of 512 threads, one on each multiprocessor, stay for all steps. A block takes one or two images at a time through
the whole network and back, within shared memory. It leaves its sums of the convolutions' gradients in global memory,
and of each image what the gradients of the linear layers' weights are made of. When all blocks are there, they share
the update among them in tiles, and meet again. Every sum has an order that depends on the number of blocks alone: a
step always gives the same bits.

Measured on one H200 with an earlier version (sigmoid, average pooling, plain SGD): 39.5 us a step of 256 images, where
PyTorch's kernels in a CUDA graph take 362 us. */

#ifdef EMULATION
#include EMULATION
#else
#include "device.cuh"
#endif

#include "layout.cuh"

#include "arithmetic.cuh"
#include "convolutions.cuh"
#include "linear.cuh"
#include "update.cuh"

/* A barrier of all blocks, in two halves: a block may do other things before it waits for the others. */
DEVICE void arrive(unsigned *counter) {
  __syncthreads();
  if (threadIdx.x == 0) add_one(counter);
}
DEVICE void wait(const unsigned *counter, unsigned arrivals) {
  if (threadIdx.x == 0) {
    while (read(counter) < arrivals) {}
    fence();
  }
  __syncthreads();
}

/* Where a step's images are in the order; the next step's end is loaded a step ahead. */
struct Range {
  int begin, end, next_end;

  DEVICE Range(const Arguments &a) : begin(a.starts[0]), end(a.starts[1]), next_end(a.starts[min(2, a.steps)]) {}
  DEVICE int count() const { return end - begin; }
  DEVICE void go_on(const Arguments &a, int step) { /* to this step */
    begin = end, end = next_end, next_end = __ldg(a.starts + min(step + 2, a.steps));
  }
};

/* The images to come. A thread has 16 pixels of one: which one is loaded a group of images ahead of the pixels, and
these a group ahead of their use. */
struct Reader {
  const Arguments &a;
  const int tid, rank, cluster, clusters;
  Range range;
  int step, group, label;
  long long image;
  bool is_real; /* and does not fill up a group */
  uint4 pixels;

  DEVICE Reader(const Arguments &a, int tid, int rank)
      : a(a), tid(tid), rank(rank), cluster(blockIdx.x / CLUSTER), clusters(gridDim.x / CLUSTER), range(a), step(0),
        group(cluster - clusters), label(-1), image(0), is_real(false), pixels{} {}

  DEVICE void look_ahead() { /* to this cluster's next group */
    group += clusters;
    while (step < a.steps && group * TOGETHER >= range.count()) range.go_on(a, ++step), group = cluster;
    const int slot = group * TOGETHER + rank * IMAGES + tid / 49;
    if (step >= a.steps || tid >= 49 * IMAGES) return;
    is_real = slot < range.count();
    image = __ldg(a.order + range.begin + (is_real ? slot : 0));
  }
  DEVICE void load() {
    if (tid >= 49 * IMAGES) return;
    pixels = __ldg(reinterpret_cast<const uint4 *>(a.images + image * 784) + tid % 49);
    const long long its_label = a.labels[image];
    label = !is_real ? -1 : its_label >= 0 && its_label < 10 ? its_label : 10;
  }
  DEVICE void put(Shared &s) const {
    if (tid >= 49 * IMAGES) return;
    const unsigned words[4] = {pixels.x, pixels.y, pixels.z, pixels.w};
    EACH(k, 16) {
      const int pixel = tid % 49 * 16 + k, byte = words[k / 4] >> (k % 4 * 8) & 255;
      s.images[tid / 49][(pixel / 28 + 2) * 36 + pixel % 28 + 2] = byte * (1.f / 255);
    }
    if (tid % 49 == 0) s.labels[tid / 49] = label;
  }
};

/* Brings a step's parameters and first images to shared memory; `copies_done` waits for the rest. `places`: where a
thread's part of the second convolution's weight belongs in `weight2` and, 16 bits higher, in `weight2_back`. */
DEVICE void load(Shared &s, int tid, const Tensors &p, const unsigned (&places)[5], const Reader &reader) {
  float weight2[5], conv = 0, bias = 0;
  EACH(k, 5) if (k * THREADS + tid < 2400) weight2[k] = __ldcg(p.weight[CONV2] + k * THREADS + tid);
  if (tid < 156) conv = __ldcg(tid < 150 ? p.weight[CONV1] + tid : p.bias[CONV1] + tid - 150);
  else if (tid < 172) conv = __ldcg(p.bias[CONV2] + tid - 156);
  if (tid < 214)
    bias = __ldcg(tid < 120 ? p.bias[FC1] + tid : tid < 204 ? p.bias[FC2] + tid - 120 : p.bias[FC3] + tid - 204);
  reader.put(s);
  EACH(k, 5) if (k * THREADS + tid < 2400) {
    (&s.weight2[0][0][0])[places[k] % 65536] = scaled(weight2[k]);
    (&s.weight2_back[0][0])[places[k] / 65536] = weight2[k];
  }
  if (tid < 150) s.weight1[tid / 25][tid % 25] = scaled(conv);
  else if (tid < 172) (tid < 156 ? s.bias1[tid - 150] : s.bias2[tid - 156]) = scaled(conv);
  if (tid < 214) s.fc_bias[tid] = bias;
  if (tid < 4) s.totals[tid / 2][tid % 2] = 0;
#if CLUSTER > 1
  for (int i = tid; i < 120 * (SLICE / 4); i += THREADS) {
    const int output = i / (SLICE / 4), input = i % (SLICE / 4) * 4;
    start_copy(&s.fc1[output][input], p.weight[FC1] + output * 400 + reader.rank * SLICE + input);
  }
#endif
  if (tid < 210) start_copy(&s.fc3[tid * 4], p.weight[FC3] + tid * 4);
}

/* This block's images of a step, forward and backward. Arrives at the counter as soon as it has left what the linear
layers' gradients are made of, while those of the convolutions are still to be computed. */
DEVICE void train_images(Shared &s, const Arguments &a, const Workspace &kept, const unsigned (&places)[5],
                         Reader &reader, int count, unsigned *linear_counter) {
  int tid = opaque(threadIdx.x);
  const int rank = reader.rank, groups = (count + TOGETHER - 1) / TOGETHER;
  load(s, tid, a.parameters, places, reader);
  float gradient1[26] = {}, gradient2[25] = {}, bias_gradient2 = 0;
  ROLLED for (int group = reader.cluster; group < groups; group += reader.clusters) {
    const int slot = group * TOGETHER + rank * IMAGES;
    const bool is_last = ONE_ROUND || group + reader.clusters >= groups;
    tid = opaque(tid);
    __syncthreads();
    reader.load();
    reader.look_ahead();
    forward1(s, tid);
    __syncthreads();
    sums2(s, tid);
    __syncthreads();
    pool2(s, tid, rank, slot, kept);
    copies_done();
    cluster_barrier();
    linear_layers(s, tid, rank, slot, count, a.parameters, kept);
    if (is_last) arrive(linear_counter);
    outer2(s, tid, bias_gradient2);
    __syncthreads();
    if (tid < 256) {
      inner2(s, tid);
    } else if (ONE_ROUND) {
      ROLLED for (int task = tid - 256; task < TASKS2; task += 256) {
        EACH(tap, 25) gradient2[tap] = 0;
        weight_gradient2(s, task, gradient2);
        keep2(s, task, gradient2);
      }
    } else if (tid - 256 < TASKS2) {
      weight_gradient2(s, tid - 256, gradient2);
    }
    __syncthreads();
    weight_gradient1(s, tid, gradient1);
    __syncthreads();
    if (is_last) break;
    reader.put(s);
  }
  if (!ONE_ROUND && tid >= 256 && tid - 256 < TASKS2) keep2(s, tid - 256, gradient2);
  add_up(s, tid, gradient1, bias_gradient2, kept.partial + blockIdx.x * PARTIAL);
}

extern "C" __global__ void CLUSTER_DIMENSIONS __launch_bounds__(THREADS, 1) train(const __grid_constant__ Arguments a) {
  if (a.steps < 1) return; /* this only tries whether it can be launched */
  Shared &s = shared_memory<Shared>();
  const int tid = threadIdx.x;
  const Workspace kept(a.workspace, a.room);
  unsigned *linear = a.arrivals, *convolutions = a.arrivals + 32, *end = a.arrivals + 64; /* in lines of their own */
  unsigned places[5]; /* it takes many instructions to find them, so this is done once */
  EACH(k, 5) {
    const int at = k * THREADS + tid, out = at / 150, in = at / 25 % 6, tap = at % 25;
    const int back = out * 196 + (tap / 5 * 3 + in / 2) * 12 + in % 2 * 5 + tap % 5;
    places[k] = (out * 6 + in) * 28 + tap + back * 65536;
  }
  Reader reader(a, tid, cluster_rank());
  reader.look_ahead();
  reader.load();
  reader.look_ahead();
  for (int i = tid; i < IMAGES * 32 * 36; i += THREADS) s.images[0][i] = 0; /* their borders stay zero */
  cluster_barrier(); /* and the other block of the cluster runs, too */
  Range range(a);
  for (int number = 0; number < a.steps; range.go_on(a, ++number)) {
    const int groups = (range.count() + TOGETHER - 1) / TOGETHER, blocks = min((int)gridDim.x, groups * CLUSTER);
    const unsigned arrivals = (number + 1) * gridDim.x;
    if (reader.cluster < groups) train_images(s, a, kept, places, reader, range.count(), linear);
    else arrive(linear);
    arrive(convolutions);
    Step step = {number, range.count(), number == a.steps - 1};
    EACH(k, 8) step.c[k] = __ldg(a.coefficients + 8 * number + k);
    wait(linear, arrivals);
    for (int tile = blockIdx.x; tile < LINEAR_TILES; tile += gridDim.x) update_linear(s, tile, a, kept, step);
    wait(convolutions, arrivals);
    for (int tile = gridDim.x - 1 - blockIdx.x; tile < SUM_TILES; tile += gridDim.x)
      update_convolutions(s, tile, a, kept.partial, blocks, step);
    arrive(end);
    wait(end, arrivals);
  }
}
