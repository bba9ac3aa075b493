/* What lenet.fast.kernels calls: LeNet's convolutions with activation and pooling, and its whole training step.

Each thread works on groups of its own. Sums over all images are formed by each thread first, and then added up thread by
thread in a fixed order, so that the same number of threads gives the same result.

Each function returns whether, or why, it failed. All numbers are long or float, because the caller does not see these
declarations. `sizes` are those of the caller's arrays: others than the compiled ones are refused. */

#include <omp.h>
#include <stddef.h>
#include <stdlib.h>

#include "block.h"
#include "linear.h"

enum { DONE, OUT_OF_MEMORY, LABEL_OUT_OF_RANGE, WRONG_SIZES };

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

/* Several rows of sums, `stride` apart, as one row, and each over the images of a group. */
static void add_up(const lanes *sums, long count, long stride, long rows, float *to) {
  for (long i = 0; i < count; i++) {
    lanes sum = {0};
    for (long row = 0; row < rows; row++) sum += sums[row * stride + i];
    to[i] = total(sum);
  }
}

int lane_count(void) { return LANES; }

/* Images (count, length) to groups (length, LANES). */
int pack(const void *images, long are_bytes, long count, long length, lanes *groups, long threads) {
  const char *at = images;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long first = 0; first < count; first += LANES)
    pack_group(at + first * length * (are_bytes ? 1 : sizeof(float)), are_bytes, in_group(count, first), length,
               groups + first / LANES * length);
  return DONE;
}

/* Groups (length, LANES) to images (count, length). */
int unpack(const float *groups, long count, long length, float *images, long threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long image = 0; image < count; image++)
    for (long i = 0; i < length; i++)
      images[image * length + i] = groups[(image / LANES * length + i) * LANES + image % LANES];
  return DONE;
}

/* How many `lanes` there are for one group, or of one sum. */
typedef struct {
  long input, outputs, pooled, weight, bias, padded;
} counts;

static counts counts_of(long inputs, long channels, long size, long padding) {
  long width = size + 2 * padding, out = width - KERNEL + 1;
  return (counts){.input = inputs * size * size, .padded = inputs * width * width,
                  .outputs = channels * out * out, .pooled = channels * out * out / 4,
                  .weight = channels * inputs * TAPS, .bias = channels};
}

static int is_block(const long *sizes, long count, long inputs, long channels, long size, long padding) {
  const long known[] = {padding, inputs, size, size, LANES, channels, inputs, KERNEL, KERNEL, channels};
  return count * sizeof(long) == sizeof known && !memcmp(sizes, known, sizeof known);
}

/* Which block has these sizes, 1 or 2; 0 if none has: padding, then the shapes of a group, the weight and the bias. */
static int block_of(const long *sizes, long count) {
  return is_block(sizes, count, FIRST) ? 1 : is_block(sizes, count, SECOND) ? 2 : 0;
}

int block_forward(const long *sizes, long size_count, const lanes *input, const float *weight, const float *bias,
                  long activation, long pooling, long groups, lanes *outputs, lanes *pooled, long threads) {
  const int block = block_of(sizes, size_count);
  if (!block) return WRONG_SIZES;
  const counts each = block == 1 ? counts_of(FIRST) : counts_of(SECOND);
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

/* The input_gradient may be NULL, and is not written for the first block, whose input is images. */
int block_backward(const long *sizes, long size_count, const lanes *input, const float *weight, const lanes *outputs,
                   const lanes *pooled, const lanes *gradient, long activation, long pooling, long groups,
                   lanes *input_gradient, float *weight_gradient, float *bias_gradient, long threads) {
  const int block = block_of(sizes, size_count);
  if (!block) return WRONG_SIZES;
  const counts each = block == 1 ? counts_of(FIRST) : counts_of(SECOND);
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

/* What a thread works with in a training step, small enough for its cache; first the sums over all of its groups. */
typedef struct {
  lanes weight_1[6 * TAPS], bias_1[6], weight_2[16 * 6 * TAPS], bias_2[16];
  float loss;
  /* Of the first block, of the second, and of the linear layers; inner_2 and inner_3 are gradients of what goes in. */
  lanes images[28 * 28], padded[32 * 32], outputs_1[6 * 28 * 28], pooled_1[6 * 14 * 14], inner_2[6 * 14 * 14];
  lanes outputs_2[16 * 10 * 10], inner_3[400];
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
    add_up(gradients[layer + 1], COUNTS[layer + 1], stride, groups, biases[layer]);
  }
}

/* The gradients of the convolutions' parameters, and the loss, from the threads' sums. */
static void add_up_rooms(const workspace *rooms, int threads, float *const *weights, float *const *biases,
                         float *loss) {
  const lanes *sums = (const lanes *)rooms;
  for (int block = 0; block < 2; block++) {
    const counts each = block ? counts_of(SECOND) : counts_of(FIRST);
    add_up(sums, each.weight, sizeof(workspace) / sizeof(lanes), threads, weights[block]);
    add_up(sums + each.weight, each.bias, sizeof(workspace) / sizeof(lanes), threads, biases[block]);
    sums += each.weight + each.bias;
  }
  *loss = 0;
  for (int thread = 0; thread < threads; thread++) *loss += rooms[thread].loss;
}

/* The shapes of an image, of the weights and of the biases. */
static const long LENET[] = {1, 28, 28, 6, 1, KERNEL, KERNEL, 16, 6, KERNEL, KERNEL, 120, 400, 84, 120, CLASSES, 84,
                             6, 16, 120, 84, CLASSES};

/* LeNet forward, the cross entropies of `count` images, summed up, and the gradients of `scale` times that sum.

parameters, and their gradients: weights of the two convolutions and the three linear layers, then their biases. labels
(count), 0 to 9. logits (count, CLASSES). One group goes forward and back before the next, so that its activations never
leave the cache; only what the gradients of the linear layers need is kept. */
int training_step(const long *sizes, long size_count, const void *images, long are_bytes, const int64_t *labels,
                  long count, const float *const *parameters, long activation, long pooling, float scale,
                  float *const *parameter_gradients, float *logits, float *loss, long threads) {
  if (size_count * sizeof(long) != sizeof LENET || memcmp(sizes, LENET, sizeof LENET)) return WRONG_SIZES;
  const float *const *weights = parameters, *const *biases = parameters + 2 + LAYERS;
  float *const *weight_gradients = parameter_gradients, *const *bias_gradients = parameter_gradients + 2 + LAYERS;
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
  for (int thread = 0; thread < threads; thread++) /* here, because there may be fewer threads than were asked for */
    memset(rooms + thread, 0, offsetof(workspace, images));
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
                     own->outputs_2, own->inner_2, own->weight_2, own->bias_2, NULL, SECOND);
      backward_group(own->images, weights[0], own->outputs_1, own->pooled_1, own->inner_2, activation, pooling,
                     own->outputs_1, NULL, own->weight_1, own->bias_1, own->padded, FIRST);
    }
    /* Behind the loop, threads wait for each other: what is kept of all groups is there. */
    gradients_of_linear_layers(passages, groups, weight_gradients + 2, bias_gradients + 2);
  }
  add_up_rooms(rooms, threads, weight_gradients, bias_gradients, loss);
  free(rooms);
  free(passages);
  return DONE;
}
