/* LeNet's two blocks of convolution, activation and 2×2 pooling, forward and backward, in vector registers.

Images lie side by side: LANES of them form a group, and a `lanes` holds the same value of each, so that one instruction
works on all of them. No image's border and no odd number of channels then leaves a part of a register empty, and the
code is the definition of each operation, for one image, with `lanes` in the place of numbers.

What makes it fast is that the innermost loops keep their sums in registers: a tile of outputs is computed at once, as
large as the registers hold, and each value that is loaded is used for several of them. The loops over a tile are
unrolled, so that its sums have names the compiler can give to registers.

Arrays are dense, the last index running fastest; their shapes stand beside them. lenet.kernels compiles and calls this. */

#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifndef LANES
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#endif

/* How much of its work a loop keeps in registers: of 32, or else of 16. */
#if defined(__AVX512F__) || defined(__aarch64__)
#define OF_REGISTERS(many, few) (many)
#else
#define OF_REGISTERS(many, few) (few)
#endif

#define KERNEL 5
#define TAPS (KERNEL * KERNEL)
#define UNROLL _Pragma("GCC unroll 32")
#define INLINE static inline __attribute__((always_inline))

typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef float four __attribute__((vector_size(16), may_alias));
typedef int32_t bits __attribute__((vector_size(4 * LANES)));

enum { NONE, SIGMOID, RELU }; /* activations */
enum { AVERAGE, MAXIMUM };    /* poolings */

/* The blocks' input channels, output channels, input height and width, and padding. */
#define FIRST 1, 6, 28, 2
#define SECOND 6, 16, 14, 0

INLINE lanes all(float value) { return value - (lanes){0}; }

INLINE lanes where(bits condition, lanes yes, lanes no) {
  return (lanes)((condition & (bits)yes) | (~condition & (bits)no));
}

/* 1 / (1 + exp(-x)), to four units in the last place; not a number stays not a number.

exp(-x) is 2^t with t = -x / ln 2 = n + r, where n is whole and |r| <= 1/2: n becomes the exponent of a float, and 2^r
is the polynomial of degree 5 with the smallest relative error there (7.5e-8), found by Remez' algorithm. */
INLINE lanes sigmoid(lanes x) {
  x = where(x < -87.f, all(-87.f), where(x > 87.f, all(87.f), x));
  /* Adding 1.5 * 2^23 leaves no bits for a fraction; the last bits are then n + 127, as an exponent is stored. */
  const float round = 12582912.f + 127.f;
  lanes shifted = x * -1.44269502f + round;
  lanes r = x * -1.44269502f - (shifted - round);
  r += x * -1.92596299e-8f; /* what the float above lacks of 1 / ln 2 */
  lanes power = 1.3276472e-3f * r + 9.67554133e-3f;
  power = power * r + 5.55071327e-2f;
  power = power * r + 2.40221197e-1f;
  power = power * r + 6.93146967e-1f;
  power = power * r + 1.00000007f;
  return 1.f / (1.f + power * (lanes)((bits)shifted << 23));
}

/* In place; a few values at a time, so that they need not wait for each other. */
INLINE void activate(int activation, lanes *values, const int count) {
  if (activation == SIGMOID) UNROLL for (int i = 0; i < count; i++) values[i] = sigmoid(values[i]);
  if (activation == RELU) UNROLL for (int i = 0; i < count; i++) values[i] = where(values[i] < 0.f, all(0.f), values[i]);
}

/* From the gradient of an activation's output, and the output, to the gradient of its input. */
INLINE lanes activation_gradient(int activation, lanes gradient, lanes output) {
  if (activation == SIGMOID) return gradient * output * (1.f - output);
  if (activation == RELU) return where(output > 0.f, gradient, all(0.f));
  return gradient;
}

/* The larger of two; not a number if one of them is not. */
INLINE lanes larger(lanes a, lanes b) { return where((b > a) | (b != b), b, a); }

/* Surrounds images (inputs, size, size) by zeros, if there is to be padding. */
INLINE const lanes *pad(const lanes *input, lanes *room, const int inputs, const int size, const int padding) {
  const int width = size + 2 * padding;
  if (!padding) return input;
  memset(room, 0, sizeof(lanes) * inputs * width * width);
  for (int row = 0; row < inputs * size; row++)
    memcpy(room + (row / size * width + row % size + padding) * width + padding, input + row * size,
           sizeof(lanes) * size);
  return room;
}

/* One group: activated outputs (channels, 2·half, 2·half) and pooled ones (channels, half, half).

The tile: the four outputs of a pooling window, for several channels. */
INLINE void forward_group(const lanes *input, const float *weight, const float *bias, int activation, int pooling,
                          lanes *outputs, lanes *pooled, lanes *room, const int inputs, const int channels,
                          const int size, const int padding) {
  const int width = size + 2 * padding, out = width - KERNEL + 1, half = out / 2;
  const int tile = channels % 3 ? OF_REGISTERS(4, 2) : OF_REGISTERS(3, 2);
  const lanes *padded = pad(input, room, inputs, size, padding);
  for (int row = 0; row < half; row++)
    for (int channel = 0; channel < channels; channel += tile)
      for (int column = 0; column < half; column++) {
        lanes sums[4][4];
        UNROLL for (int c = 0; c < tile; c++)
          UNROLL for (int place = 0; place < 4; place++) sums[c][place] = all(bias[channel + c]);
        for (int in = 0; in < inputs; in++)
          for (int i = 0; i < KERNEL; i++) {
            const lanes *upper = padded + (in * width + 2 * row + i) * width + 2 * column, *lower = upper + width;
            const float *kernel = weight + (channel * inputs + in) * TAPS + i * KERNEL;
            UNROLL for (int j = 0; j < KERNEL; j++)
              UNROLL for (int c = 0; c < tile; c++) {
                lanes w = all(kernel[c * inputs * TAPS + j]);
                sums[c][0] += w * upper[j];
                sums[c][1] += w * upper[j + 1];
                sums[c][2] += w * lower[j];
                sums[c][3] += w * lower[j + 1];
              }
          }
        activate(activation, sums[0], 4 * tile);
        UNROLL for (int c = 0; c < tile; c++) {
          const lanes *values = sums[c];
          UNROLL for (int place = 0; place < 4; place++)
            outputs[((channel + c) * out + 2 * row + place / 2) * out + 2 * column + place % 2] = values[place];
          pooled[((channel + c) * half + row) * half + column] =
              pooling == MAXIMUM ? larger(larger(values[0], values[1]), larger(values[2], values[3]))
                                 : (values[0] + values[1] + values[2] + values[3]) * 0.25f;
        }
      }
}

/* From the gradient of the pooled outputs to that of the convolution's (channels, 2·half, 2·half); adds that of the bias.

Of equal values, the first in a window has the whole of a maximum's gradient. */
INLINE void outer_gradient(const lanes *outputs, const lanes *pooled, const lanes *gradient, int activation,
                           int pooling, lanes *outer, lanes *bias, const int channels, const int half) {
  const int out = 2 * half;
  for (int channel = 0; channel < channels; channel++) {
    lanes sum = bias[channel];
    for (int row = 0; row < half; row++)
      for (int column = 0; column < half; column++) {
        const int at = (channel * half + row) * half + column, corner = (channel * out + 2 * row) * out + 2 * column;
        lanes left = pooling == MAXIMUM ? gradient[at] : gradient[at] * 0.25f;
        UNROLL for (int place = 0; place < 4; place++) {
          const int here = corner + place / 2 * out + place % 2;
          lanes share = left;
          if (pooling == MAXIMUM) {
            bits found = outputs[here] == pooled[at];
            share = where(found, left, all(0.f));
            left = where(found, all(0.f), left);
          }
          outer[here] = activation_gradient(activation, share, outputs[here]);
          sum += outer[here];
        }
      }
    bias[channel] = sum;
  }
}

/* Adds the gradient of the weight (channels, inputs, KERNEL, KERNEL).

The tile: one row of a kernel, for several channels. */
INLINE void weight_gradient(const lanes *padded, const lanes *outer, lanes *weight, const int inputs,
                            const int channels, const int width) {
  const int out = width - KERNEL + 1, tile = channels % 3 ? OF_REGISTERS(4, 2) : OF_REGISTERS(3, 2);
  for (int channel = 0; channel < channels; channel += tile)
    for (int in = 0; in < inputs; in++)
      for (int i = 0; i < KERNEL; i++) {
        lanes sums[4][KERNEL], *kernel = weight + (channel * inputs + in) * TAPS + i * KERNEL;
        UNROLL for (int c = 0; c < tile; c++)
          UNROLL for (int j = 0; j < KERNEL; j++) sums[c][j] = kernel[c * inputs * TAPS + j];
        for (int row = 0; row < out; row++)
          for (int column = 0; column < out; column++)
            UNROLL for (int j = 0; j < KERNEL; j++)
              UNROLL for (int c = 0; c < tile; c++)
                sums[c][j] += outer[((channel + c) * out + row) * out + column] *
                              padded[(in * width + row + i) * width + column + j];
        UNROLL for (int c = 0; c < tile; c++)
          UNROLL for (int j = 0; j < KERNEL; j++) kernel[c * inputs * TAPS + j] = sums[c][j];
      }
}

/* The gradient of the input (inputs, width, width): the transposed convolution of that of the outputs.

The tile: a whole row of the input, for one channel or two. */
INLINE void input_gradient(const lanes *outer, const float *weight, lanes *inner, const int inputs,
                           const int channels, const int width) {
  const int out = width - KERNEL + 1, tile = OF_REGISTERS(2, 1);
  for (int row = 0; row < width; row++) {
    const int first = row < out ? 0 : row - out + 1, last = row < KERNEL ? row : KERNEL - 1;
    for (int in = 0; in < inputs; in += tile) {
      lanes sums[2][14];
      UNROLL for (int c = 0; c < tile; c++)
        UNROLL for (int column = 0; column < width; column++) sums[c][column] = all(0.f);
      for (int channel = 0; channel < channels; channel++)
        for (int i = first; i <= last; i++) {
          const lanes *from = outer + (channel * out + row - i) * out;
          const float *kernel = weight + (channel * inputs + in) * TAPS + i * KERNEL;
          UNROLL for (int j = 0; j < KERNEL; j++)
            UNROLL for (int c = 0; c < tile; c++) {
              lanes w = all(kernel[c * TAPS + j]);
              UNROLL for (int column = 0; column < out; column++) sums[c][column + j] += w * from[column];
            }
        }
      UNROLL for (int c = 0; c < tile; c++)
        UNROLL for (int column = 0; column < width; column++)
          inner[((in + c) * width + row) * width + column] = sums[c][column];
    }
  }
}

INLINE void backward_group(const lanes *input, const float *weight, const lanes *outputs, const lanes *pooled,
                           const lanes *gradient, int activation, int pooling, lanes *inner, lanes *weight_sums,
                           lanes *bias_sums, lanes *room, const int inputs, const int channels, const int size,
                           const int padding) {
  const int width = size + 2 * padding, out = width - KERNEL + 1;
  const lanes *padded = pad(input, room, inputs, size, padding);
  lanes *outer = room + inputs * width * width;
  outer_gradient(outputs, pooled, gradient, activation, pooling, outer, bias_sums, channels, out / 2);
  weight_gradient(padded, outer, weight_sums, inputs, channels, width);
  if (!padding) input_gradient(outer, weight, inner, inputs, channels, width); /* the images need none */
}

/* outputs[a] = bias[a] + the sum over b of matrix[a, b] * inputs[b], for several groups at once; bias may be NULL.

A step by rows along the matrix, (columns, 1), makes it a layer; the other way round, (1, rows), the layer transposed.
The tile: two outputs of each group. */
INLINE void product(const float *matrix, long step_a, long step_b, const float *bias, const lanes *inputs,
                    long input_count, lanes *outputs, long output_count, const int groups) {
  for (long a = 0; a < output_count; a += 2) {
    lanes sums[4][2];
    UNROLL for (int group = 0; group < groups; group++)
      UNROLL for (int i = 0; i < 2; i++) sums[group][i] = all(bias ? bias[a + i] : 0.f);
    for (long b = 0; b < input_count; b++)
      UNROLL for (int i = 0; i < 2; i++) {
        lanes element = all(matrix[(a + i) * step_a + b * step_b]);
        UNROLL for (int group = 0; group < groups; group++)
          sums[group][i] += element * inputs[group * input_count + b];
      }
    UNROLL for (int group = 0; group < groups; group++)
      UNROLL for (int i = 0; i < 2; i++) outputs[group * output_count + a + i] = sums[group][i];
  }
}

/* The sum over the images of a group: by fours first, which is an instruction for each four. */
INLINE float total(lanes values) {
  const four *parts = (const four *)&values;
  four sum = parts[0];
  UNROLL for (int i = 1; i < LANES / 4; i++) sum += parts[i];
  return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

/* Up to COLUMNS columns of the gradient of a linear layer's weight. The tile: two rows, four columns.

The columns are first laid side by side for some groups, because in `inputs` they lie pages apart. */
enum { COLUMNS = 16, SIDE_BY_SIDE = 32 };

INLINE void linear_weight_gradient(const lanes *inputs, long input_count, const lanes *outer, long output_count,
                                   long first_column, long groups, float *weight) {
  const long count = input_count - first_column < COLUMNS ? input_count - first_column : COLUMNS;
  lanes columns[SIDE_BY_SIDE][COLUMNS];
  for (long first = 0; first == 0 || first < groups; first += SIDE_BY_SIDE) { /* once for no groups, which give zeros */
    const long there = groups - first < SIDE_BY_SIDE ? groups - first : SIDE_BY_SIDE;
    for (long group = 0; group < there; group++)
      memcpy(columns[group], inputs + (first + group) * input_count + first_column, count * sizeof(lanes));
    for (long row = 0; row < output_count; row += 2)
      for (long column = 0; column < count; column += 4) {
        const lanes *rows = outer + first * output_count + row;
        lanes sums[2][4] = {{{0}}};
        for (long group = 0; group < there; group++, rows += output_count) {
          lanes upper = rows[0], lower = rows[1];
          UNROLL for (int j = 0; j < 4; j++) {
            lanes value = columns[group][column + j];
            sums[0][j] += upper * value;
            sums[1][j] += lower * value;
          }
        }
        UNROLL for (int i = 0; i < 2; i++)
          UNROLL for (int j = 0; j < 4; j++) {
            float *to = weight + (row + i) * input_count + first_column + column + j;
            *to = (first ? *to : 0) + total(sums[i][j]);
          }
      }
  }
}

/* How many `lanes` there are for one group, or of one sum. */
typedef struct {
  long input, outputs, pooled, weight, bias, room;
} sizes;

static sizes sizes_of(long inputs, long channels, long size, long padding) {
  long width = size + 2 * padding, out = width - KERNEL + 1;
  return (sizes){.input = inputs * size * size,
                 .outputs = channels * out * out,
                 .pooled = channels * out * out / 4,
                 .weight = channels * inputs * TAPS,
                 .bias = channels,
                 .room = inputs * width * width + channels * out * out};
}

static lanes *allocate(long count) { return aligned_alloc(64, (count * sizeof(lanes) + 63) / 64 * 64); }

/* Below: what lenet.kernels calls. Those that can run out of memory say so by returning 1. */

int lane_count(void) { return LANES; }

/* Images (count, length) to groups (length, LANES), with zeros where the last group has no image. Bytes 0-255 become
floats in [0, 1]. */
void pack(const void *images, int are_bytes, long count, long length, lanes *groups, int threads) {
  const uint8_t *bytes = images;
  const float *floats = images;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long group = 0; group < (count + LANES - 1) / LANES; group++) {
    const long first = group * LANES, there = count - first < LANES ? count - first : LANES;
    for (long i = 0; i < length; i++) {
      bits whole = {0};
      lanes values = {0};
      if (are_bytes) {
        UNROLL for (int lane = 0; lane < LANES; lane++)
          if (lane < there) whole[lane] = bytes[(first + lane) * length + i];
        values = __builtin_convertvector(whole, lanes) / 255.f;
      } else
        UNROLL for (int lane = 0; lane < LANES; lane++)
          if (lane < there) values[lane] = floats[(first + lane) * length + i];
      groups[group * length + i] = values;
    }
  }
}

/* Groups (length, LANES) to images (count, length). */
void unpack(const float *groups, long count, long length, float *images, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long image = 0; image < count; image++)
    for (long i = 0; i < length; i++)
      images[image * length + i] = groups[(image / LANES * length + i) * LANES + image % LANES];
}

int block_forward(int block, const lanes *input, const float *weight, const float *bias, int activation, int pooling,
            long groups, lanes *outputs, lanes *pooled, int threads) {
  sizes each = block == 1 ? sizes_of(FIRST) : sizes_of(SECOND);
  lanes *rooms = allocate(threads * each.room);
  if (!rooms) return 1;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long group = 0; group < groups; group++) {
    const lanes *in = input + group * each.input;
    lanes *out = outputs + group * each.outputs, *pool = pooled + group * each.pooled;
    lanes *room = rooms + omp_get_thread_num() * each.room;
    if (block == 1) forward_group(in, weight, bias, activation, pooling, out, pool, room, FIRST);
    else forward_group(in, weight, bias, activation, pooling, out, pool, room, SECOND);
  }
  free(rooms);
  return 0;
}

int block_backward(int block, const lanes *input, const float *weight, const lanes *outputs, const lanes *pooled,
             const lanes *gradient, int activation, int pooling, long groups, lanes *input_gradient,
             float *weight_gradient, float *bias_gradient, int threads) {
  sizes each = block == 1 ? sizes_of(FIRST) : sizes_of(SECOND);
  long sums = each.weight + each.bias;
  lanes *all_sums = allocate(threads * (sums + each.room)), *rooms = all_sums + threads * sums;
  if (!all_sums) return 1;
  memset(all_sums, 0, threads * sums * sizeof(lanes));
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long group = 0; group < groups; group++) {
    const lanes *in = input + group * each.input, *out = outputs + group * each.outputs;
    const lanes *pool = pooled + group * each.pooled, *from = gradient + group * each.pooled;
    lanes *to = input_gradient + group * each.input, *room = rooms + omp_get_thread_num() * each.room;
    lanes *w = all_sums + omp_get_thread_num() * sums, *b = w + each.weight;
    if (block == 1) backward_group(in, weight, out, pool, from, activation, pooling, to, w, b, room, FIRST);
    else backward_group(in, weight, out, pool, from, activation, pooling, to, w, b, room, SECOND);
  }
  for (long i = 0; i < sums; i++) {
    lanes sum = all_sums[i]; /* thread by thread in a fixed order, so that the same run gives the same result */
    for (int thread = 1; thread < threads; thread++) sum += all_sums[thread * sums + i];
    *(i < each.weight ? weight_gradient + i : bias_gradient + i - each.weight) = total(sum);
  }
  free(all_sums);
  return 0;
}

/* LeNet's three linear layers, the first two with an activation: numbers before each, and after the last. */
enum { LAYERS = 3, TOGETHER = 4 /* groups in a tile */ };
static const long COUNTS[LAYERS + 1] = {400, 120, 84, 10};

/* values[0] is the input; values[1] to values[3] get the outputs, (groups, count, LANES). */
void head_forward(lanes *const *values, const float *const *weights, const float *const *biases, int activation,
                  long groups, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long first = 0; first < groups; first += TOGETHER)
    for (int layer = 0; layer < LAYERS; layer++) {
      const long before = COUNTS[layer], after = COUNTS[layer + 1];
      const long there = groups - first < TOGETHER ? groups - first : TOGETHER;
      const lanes *in = values[layer] + first * before;
      lanes *out = values[layer + 1] + first * after;
      if (there == TOGETHER)
        product(weights[layer], before, 1, biases[layer], in, before, out, after, TOGETHER);
      else
        for (long group = 0; group < there; group++)
          product(weights[layer], before, 1, biases[layer], in + group * before, before, out + group * after, after, 1);
      if (layer < LAYERS - 1)
        for (long i = 0; i < there * after; i += 4) activate(activation, out + i, 4);
    }
}

/* gradients[3] is that of the outputs; gradients[0] to gradients[2] get those of values[0] to values[2], which for
values that an activation made is that of what it made them from. */
void head_backward(lanes *const *gradients, lanes *const *values, const float *const *weights, int activation,
                   long groups, float *const *weight_gradients, float *const *bias_gradients, int threads) {
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (long first = 0; first < groups; first += TOGETHER)
      for (int layer = LAYERS - 1; layer >= 0; layer--) {
        const long before = COUNTS[layer], after = COUNTS[layer + 1];
        const long there = groups - first < TOGETHER ? groups - first : TOGETHER;
        const lanes *from = gradients[layer + 1] + first * after, *value = values[layer] + first * before;
        lanes *to = gradients[layer] + first * before;
        if (there == TOGETHER)
          product(weights[layer], 1, before, NULL, from, after, to, before, TOGETHER);
        else
          for (long group = 0; group < there; group++)
            product(weights[layer], 1, before, NULL, from + group * after, after, to + group * before, before, 1);
        if (layer > 0)
          for (long i = 0; i < there * before; i++) to[i] = activation_gradient(activation, to[i], value[i]);
      }
    for (int layer = 0; layer < LAYERS; layer++) {
      const long before = COUNTS[layer], after = COUNTS[layer + 1];
#pragma omp for schedule(static) nowait
      for (long column = 0; column < before; column += COLUMNS)
        linear_weight_gradient(values[layer], before, gradients[layer + 1], after, column, groups,
                               weight_gradients[layer]);
#pragma omp for schedule(static) nowait
      for (long row = 0; row < after; row++) {
        lanes sum = {0};
        for (long group = 0; group < groups; group++) sum += gradients[layer + 1][group * after + row];
        bias_gradients[layer][row] = total(sum);
      }
    }
  }
}
