/* LeNet's two blocks of convolution, activation and 2×2 pooling, forward and backward, for one group of images.

A convolution's output is the sum of a window of its input times the kernel. So, with z the outputs and dz their
gradients, the gradient of a weight is the sum over all windows of dz times what the weight was multiplied by, and the
gradient of an input the sum of dz times the weights it was multiplied by: the transposed convolution.

In the code, `outer` is the gradient of a convolution's outputs and `inner` that of its inputs; `room` is memory to work
in. */

#pragma once

#include "lanes.h"

#define KERNEL 5
#define TAPS (KERNEL * KERNEL)

/* The blocks' input channels, output channels, input height and width, and padding: the last arguments of the functions
below, which are inlined, so that the compiler knows these numbers and unrolls by them. */
#define FIRST 1, 6, 28, 2
#define SECOND 6, 16, 14, 0

/* How many output channels a tile has: a divisor of the first block's six, or of the second's sixteen. */
#define CHANNELS_IN_TILE(channels) ((channels) % 3 ? OF_REGISTERS(4, 2) : OF_REGISTERS(3, 2))

/* Surrounds images (inputs, size, size) by zeros, in `room`, if there is to be padding. */
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
  const int tile = CHANNELS_IN_TILE(channels);
  const lanes *padded = pad(input, room, inputs, size, padding);
  for (int row = 0; row < half; row++)
    for (int channel = 0; channel < channels; channel += tile)
      for (int column = 0; column < half; column++) {
        lanes sums[4][4];
        UNROLL for (int c = 0; c < tile; c++)
          UNROLL for (int place = 0; place < 4; place++) sums[c][place] = broadcast(bias[channel + c]);
        for (int in = 0; in < inputs; in++)
          for (int i = 0; i < KERNEL; i++) {
            const lanes *upper = padded + (in * width + 2 * row + i) * width + 2 * column, *lower = upper + width;
            const float *kernel = weight + (channel * inputs + in) * TAPS + i * KERNEL;
            UNROLL for (int j = 0; j < KERNEL; j++)
              UNROLL for (int c = 0; c < tile; c++) {
                lanes w = broadcast(kernel[c * inputs * TAPS + j]);
                sums[c][0] += w * upper[j];
                sums[c][1] += w * upper[j + 1];
                sums[c][2] += w * lower[j];
                sums[c][3] += w * lower[j + 1];
              }
          }
        activate(activation, (lanes *)sums, 4 * tile);
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
            share = where(found, left, broadcast(0.f));
            left = where(found, broadcast(0.f), left);
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
  const int out = width - KERNEL + 1, tile = CHANNELS_IN_TILE(channels);
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
      lanes sums[2][14]; /* the width of the second block's input, which alone needs this */
      UNROLL for (int c = 0; c < tile; c++)
        UNROLL for (int column = 0; column < width; column++) sums[c][column] = broadcast(0.f);
      for (int channel = 0; channel < channels; channel++)
        for (int i = first; i <= last; i++) {
          const lanes *from = outer + (channel * out + row - i) * out;
          const float *kernel = weight + (channel * inputs + in) * TAPS + i * KERNEL;
          UNROLL for (int j = 0; j < KERNEL; j++)
            UNROLL for (int c = 0; c < tile; c++) {
              lanes w = broadcast(kernel[c * TAPS + j]);
              UNROLL for (int column = 0; column < out; column++) sums[c][column + j] += w * from[column];
            }
        }
      UNROLL for (int c = 0; c < tile; c++)
        UNROLL for (int column = 0; column < width; column++)
          inner[((in + c) * width + row) * width + column] = sums[c][column];
    }
  }
}

/* The gradients of one group: adds those of the weight and the bias, and leaves that of the outputs in `outer`, which may
be `outputs`. That of the input is left in `inner`, unless that is NULL or the input images, as the first block's is. */
INLINE void backward_group(const lanes *input, const float *weight, const lanes *outputs, const lanes *pooled,
                           const lanes *gradient, int activation, int pooling, lanes *outer, lanes *inner,
                           lanes *weight_sums, lanes *bias_sums, lanes *room, const int inputs, const int channels,
                           const int size, const int padding) {
  const int width = size + 2 * padding, out = width - KERNEL + 1;
  const lanes *padded = pad(input, room, inputs, size, padding);
  outer_gradient(outputs, pooled, gradient, activation, pooling, outer, bias_sums, channels, out / 2);
  weight_gradient(padded, outer, weight_sums, inputs, channels, width);
  if (!padding && inner) /* the second block */
    input_gradient(outer, weight, inner, inputs, channels, width);
}
