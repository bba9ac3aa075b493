/* What lenet.fast.kernels calls: LeNet's convolutions with what belongs to them, and its whole training step.

Each thread works on groups of its own. Sums over all images are formed by each thread first, and then added up thread by
thread in a fixed order, so that the same number of threads gives the same result. What can fail returns why. */

#include <omp.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "block.h"
#include "linear.h"

enum { DONE, OUT_OF_MEMORY, LABEL_OUT_OF_RANGE };

static void *allocate(size_t bytes) { return aligned_alloc(64, (bytes + 63) / 64 * 64); }

/* Up to LANES images (length), bytes or floats, as a group (length, LANES), filled up with zeros. Bytes 0-255 become
floats in [0, 1]. */
static void pack_group(const void *images, int are_bytes, long count, long length, lanes *group) {
  const uint8_t *bytes = images;
  const float *floats = images;
  for (long i = 0; i < length; i++) {
    bits whole = {0};
    lanes values = {0};
    if (are_bytes) {
      UNROLL for (int lane = 0; lane < LANES; lane++)
        if (lane < count) whole[lane] = bytes[lane * length + i];
      values = __builtin_convertvector(whole, lanes) / 255.f;
    } else
      UNROLL for (int lane = 0; lane < LANES; lane++)
        if (lane < count) values[lane] = floats[lane * length + i];
    group[i] = values;
  }
}

/* How many images there are from `first` on, but at most a group. */
static long in_group(long count, long first) { return count - first < LANES ? count - first : LANES; }

/* The threads' sums as one, over the images of a group too. */
static void add_up(const lanes *sums, long count, long stride, int threads, float *to) {
  for (long i = 0; i < count; i++) {
    lanes sum = sums[i];
    for (int thread = 1; thread < threads; thread++) sum += sums[thread * stride + i];
    to[i] = total(sum);
  }
}

int lane_count(void) { return LANES; }

/* Images (count, length) to groups (length, LANES). */
void pack(const void *images, int are_bytes, long count, long length, lanes *groups, int threads) {
  const char *at = images;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long first = 0; first < count; first += LANES)
    pack_group(at + first * length * (are_bytes ? 1 : sizeof(float)), are_bytes, in_group(count, first), length,
               groups + first / LANES * length);
}

/* Groups (length, LANES) to images (count, length). */
void unpack(const float *groups, long count, long length, float *images, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long image = 0; image < count; image++)
    for (long i = 0; i < length; i++)
      images[image * length + i] = groups[(image / LANES * length + i) * LANES + image % LANES];
}

/* How many `lanes` there are for one group, or of one sum. */
typedef struct {
  long input, outputs, pooled, weight, bias, padded;
} sizes;

static sizes sizes_of(long inputs, long channels, long size, long padding) {
  long width = size + 2 * padding, out = width - KERNEL + 1;
  return (sizes){.input = inputs * size * size,
                 .outputs = channels * out * out,
                 .pooled = channels * out * out / 4,
                 .weight = channels * inputs * TAPS,
                 .bias = channels,
                 .padded = inputs * width * width};
}

int block_forward(int block, const lanes *input, const float *weight, const float *bias, int activation, int pooling,
                  long groups, lanes *outputs, lanes *pooled, int threads) {
  const sizes each = block == 1 ? sizes_of(FIRST) : sizes_of(SECOND);
  lanes *rooms = allocate(threads * each.padded * sizeof(lanes));
  if (!rooms) return OUT_OF_MEMORY;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long group = 0; group < groups; group++) {
    const lanes *in = input + group * each.input;
    lanes *out = outputs + group * each.outputs, *pool = pooled + group * each.pooled;
    lanes *room = rooms + omp_get_thread_num() * each.padded;
    if (block == 1) forward_group(in, weight, bias, activation, pooling, out, pool, room, FIRST);
    else forward_group(in, weight, bias, activation, pooling, out, pool, room, SECOND);
  }
  free(rooms);
  return DONE;
}

/* The first block's input is images: its input_gradient is NULL. */
int block_backward(int block, const lanes *input, const float *weight, const lanes *outputs, const lanes *pooled,
                   const lanes *gradient, int activation, int pooling, long groups, lanes *input_gradient,
                   float *weight_gradient, float *bias_gradient, int threads) {
  const sizes each = block == 1 ? sizes_of(FIRST) : sizes_of(SECOND);
  const long stride = each.weight + each.bias + each.outputs + each.padded;
  lanes *memory = allocate(threads * stride * sizeof(lanes));
  if (!memory) return OUT_OF_MEMORY;
  memset(memory, 0, threads * stride * sizeof(lanes));
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long group = 0; group < groups; group++) {
    const lanes *in = input + group * each.input, *out = outputs + group * each.outputs;
    const lanes *pool = pooled + group * each.pooled, *from = gradient + group * each.pooled;
    lanes *to = input_gradient ? input_gradient + group * each.input : NULL;
    lanes *w = memory + omp_get_thread_num() * stride, *b = w + each.weight, *outer = b + each.bias;
    lanes *room = outer + each.outputs;
    if (block == 1) backward_group(in, weight, out, pool, from, activation, pooling, outer, to, w, b, room, FIRST);
    else backward_group(in, weight, out, pool, from, activation, pooling, outer, to, w, b, room, SECOND);
  }
  add_up(memory, each.weight, stride, threads, weight_gradient);
  add_up(memory + each.weight, each.bias, stride, threads, bias_gradient);
  free(memory);
  return DONE;
}

/* What a thread needs for a group in a training step, small enough to stay in its cache; first the sums over all of its
groups. */
typedef struct {
  lanes weight_sums[2][16 * 6 * TAPS], bias_sums[2][16];
  /* Of the first block, of the second, and of the linear layers; inner_2 and inner_3 are gradients of what goes in. */
  lanes images[28 * 28], padded[32 * 32], outputs_1[6 * 28 * 28], pooled_1[6 * 14 * 14], inner_2[6 * 14 * 14];
  lanes outputs_2[16 * 10 * 10], inner_3[400];
  float loss;
} workspace;

/* What is kept of each group on its passage through the linear layers, until the gradients of their weights are formed. */
typedef struct {
  lanes values[400 + 120 + 84 + CLASSES], gradients[120 + 84 + CLASSES];
} passage;

static void pointers_into(passage *group, lanes **values, lanes **gradients) {
  values[0] = group->values;
  for (int layer = 0; layer < LAYERS; layer++) values[layer + 1] = values[layer] + COUNTS[layer];
  gradients[1] = group->gradients;
  for (int layer = 1; layer < LAYERS; layer++) gradients[layer + 1] = gradients[layer] + COUNTS[layer];
}

/* The gradients of the linear layers' parameters, from what was kept of all groups. Each thread forms some of them. */
static void gradients_of_linear_layers(passage *passages, long groups, float *const *weights, float *const *biases) {
  const long stride = sizeof(passage) / sizeof(lanes);
  lanes *values[LAYERS + 1], *gradients[LAYERS + 1];
  pointers_into(passages, values, gradients);
  for (int layer = 0; layer < LAYERS; layer++) {
#pragma omp for schedule(static) nowait
    for (long column = 0; column < COUNTS[layer]; column += COLUMNS)
      linear_weight_gradient(values[layer], COUNTS[layer], gradients[layer + 1], COUNTS[layer + 1], stride, groups,
                             column, weights[layer]);
#pragma omp single nowait
    linear_bias_gradient(gradients[layer + 1], COUNTS[layer + 1], stride, groups, biases[layer]);
  }
}

static void clear_rooms(workspace *rooms, int threads) {
  for (int thread = 0; thread < threads; thread++) {
    memset(rooms[thread].weight_sums, 0, sizeof rooms->weight_sums);
    memset(rooms[thread].bias_sums, 0, sizeof rooms->bias_sums);
    rooms[thread].loss = 0;
  }
}

/* The gradients of the convolutions' parameters, and the loss, from the threads' sums. */
static void add_up_rooms(const workspace *rooms, int threads, float *const *weights, float *const *biases,
                         float *loss) {
  const long stride = sizeof(workspace) / sizeof(lanes), counts[] = {sizes_of(FIRST).weight, sizes_of(SECOND).weight};
  const long channels[] = {sizes_of(FIRST).bias, sizes_of(SECOND).bias};
  for (int block = 0; block < 2; block++) {
    const char *first = (const char *)rooms; /* not an inner array, beyond whose end a stride would lead */
    add_up((const lanes *)(first + offsetof(workspace, weight_sums[block])), counts[block], stride, threads,
           weights[block]);
    add_up((const lanes *)(first + offsetof(workspace, bias_sums[block])), channels[block], stride, threads,
           biases[block]);
  }
  *loss = 0;
  for (int thread = 0; thread < threads; thread++) *loss += rooms[thread].loss;
}

/* LeNet forward, the cross entropies of `count` images, summed up, and the gradients of `scale` times that sum.

weights and biases, and their gradients: of the two convolutions, then of the three linear layers. labels (count), 0 to 9.
logits (count, CLASSES). One group goes forward and back before the next, so that its activations never leave the cache;
only what the gradients of the linear layers need is kept. */
int training_step(const void *images, int are_bytes, const int64_t *labels, long count, const float *const *weights,
                  const float *const *biases, int activation, int pooling, float scale,
                  float *const *weight_gradients, float *const *bias_gradients, float *logits, float *loss,
                  int threads) {
  for (long image = 0; image < count; image++)
    if (labels[image] < 0 || labels[image] >= CLASSES) return LABEL_OUT_OF_RANGE;
  const long groups = (count + LANES - 1) / LANES;
  workspace *rooms = allocate(threads * sizeof(workspace));
  passage *passages = allocate((groups + 1) * sizeof(passage)); /* one more: NULL then always means a failure */
  if (!rooms || !passages) {
    free(rooms);
    free(passages);
    return OUT_OF_MEMORY;
  }
  clear_rooms(rooms, threads); /* here, because there may be fewer threads than were asked for */
#pragma omp parallel num_threads(threads)
  {
    workspace *own = rooms + omp_get_thread_num();
    lanes *values[LAYERS + 1], *gradients[LAYERS + 1];
#pragma omp for schedule(static)
    for (long group = 0; group < groups; group++) {
      const long first = group * LANES, images_here = in_group(count, first);
      const char *at = (const char *)images + first * 28 * 28 * (are_bytes ? 1 : sizeof(float));
      pointers_into(passages + group, values, gradients);
      gradients[0] = own->inner_3;
      pack_group(at, are_bytes, images_here, 28 * 28, own->images);
      forward_group(own->images, weights[0], biases[0], activation, pooling, own->outputs_1, own->pooled_1,
                    own->padded, FIRST);
      forward_group(own->pooled_1, weights[1], biases[1], activation, pooling, own->outputs_2, values[0], NULL, SECOND);
      head_forward(values, weights + 2, biases + 2, activation);
      own->loss += cross_entropy(values[LAYERS], labels + first, images_here, scale, gradients[LAYERS]);
      for (long image = 0; image < images_here; image++)
        for (int class = 0; class < CLASSES; class++)
          logits[(first + image) * CLASSES + class] = values[LAYERS][class][image];
      head_backward(gradients, values, weights + 2, activation);
      backward_group(own->pooled_1, weights[1], own->outputs_2, values[0], gradients[0], activation, pooling,
                     own->outputs_2, own->inner_2, own->weight_sums[1], own->bias_sums[1], NULL, SECOND);
      backward_group(own->images, weights[0], own->outputs_1, own->pooled_1, own->inner_2, activation, pooling,
                     own->outputs_1, NULL, own->weight_sums[0], own->bias_sums[0], own->padded, FIRST);
    }
    /* Behind the loop, threads wait for each other: what is kept of all groups is there. */
    gradients_of_linear_layers(passages, groups, weight_gradients + 2, bias_gradients + 2);
  }
  add_up_rooms(rooms, threads, weight_gradients, bias_gradients, loss);
  free(rooms);
  free(passages);
  return DONE;
}
