/* LeNet's linear layers and its loss, for groups of images. */

#pragma once

#include <math.h>

#include "lanes.h"

/* LeNet's three linear layers: how many numbers there are before, between and behind them. */
enum { LAYERS = 3, CLASSES = 10 };
static const long COUNTS[LAYERS + 1] = {400, 120, 84, CLASSES};

/* outputs[a] = bias[a] + the sum over b of matrix[a, b] * inputs[b], for one group; bias may be NULL.

Steps along the matrix of (columns, 1) make it a layer; the other way round, of (1, columns), the layer transposed. */
INLINE void product_by_tiles(const float *matrix, long step_a, long step_b, const float *bias, const lanes *inputs,
                             long input_count, lanes *outputs, long output_count, const int tile) {
  for (long a = 0; a < output_count; a += tile) {
    lanes sums[12];
    UNROLL for (int i = 0; i < tile; i++) sums[i] = broadcast(bias ? bias[a + i] : 0.f);
    for (long b = 0; b < input_count; b++) {
      lanes input = inputs[b];
      UNROLL for (int i = 0; i < tile; i++) sums[i] += broadcast(matrix[(a + i) * step_a + b * step_b]) * input;
    }
    UNROLL for (int i = 0; i < tile; i++) outputs[a + i] = sums[i];
  }
}

/* The same; LeNet's numbers of outputs are all multiples of 12 or of 10. */
static void product(const float *matrix, long step_a, long step_b, const float *bias, const lanes *inputs,
                    long input_count, lanes *outputs, long output_count) {
  if (output_count % 12 == 0)
    product_by_tiles(matrix, step_a, step_b, bias, inputs, input_count, outputs, output_count, 12);
  else
    product_by_tiles(matrix, step_a, step_b, bias, inputs, input_count, outputs, output_count, 10);
}

/* One group through the layers. values[0] is what goes in, the others get what comes out of each layer. */
static void head_forward(lanes *const *values, const float *const *weights, const float *const *biases,
                         int activation) {
  for (int layer = 0; layer < LAYERS; layer++) {
    const long before = COUNTS[layer], after = COUNTS[layer + 1];
    product(weights[layer], before, 1, biases[layer], values[layer], before, values[layer + 1], after);
    if (layer < LAYERS - 1)
      for (long i = 0; i < after; i += 4) activate(activation, values[layer + 1] + i, 4);
  }
}

/* One group back. gradients[3] is that of what came out of the last layer; the others get those of what went into each,
before the activation that made it. */
static void head_backward(lanes *const *gradients, lanes *const *values, const float *const *weights,
                          int activation) {
  for (int layer = LAYERS - 1; layer >= 0; layer--) {
    const long before = COUNTS[layer], after = COUNTS[layer + 1];
    product(weights[layer], 1, before, NULL, gradients[layer + 1], after, gradients[layer], before);
    if (layer > 0)
      for (long i = 0; i < before; i++)
        gradients[layer][i] = activation_gradient(activation, gradients[layer][i], values[layer][i]);
  }
}

enum { COLUMNS = 16, SIDE_BY_SIDE = 32 };

/* Up to COLUMNS columns of the gradient of a layer's weight, from all groups. The tile: two rows, four columns.

The groups' values lie `stride` apart, each in another page of memory: so those of some groups are first copied side by
side, as many as the processor's first cache holds. */
static void linear_weight_gradient(const lanes *inputs, long input_count, const lanes *outer, long output_count,
                                   long stride, long groups, long first_column, float *weight) {
  const long count = input_count - first_column < COLUMNS ? input_count - first_column : COLUMNS;
  lanes columns[SIDE_BY_SIDE][COLUMNS];
  for (long first = 0; first == 0 || first < groups; first += SIDE_BY_SIDE) { /* without groups too, for zeros */
    const long here = groups - first < SIDE_BY_SIDE ? groups - first : SIDE_BY_SIDE;
    for (long group = 0; group < here; group++)
      memcpy(columns[group], inputs + (first + group) * stride + first_column, count * sizeof(lanes));
    for (long row = 0; row < output_count; row += 2)
      for (long column = 0; column < count; column += 4) {
        const lanes *rows = outer + first * stride + row;
        lanes sums[2][4] = {{{0}}};
        for (long group = 0; group < here; group++, rows += stride) {
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

/* One group's cross entropies, summed up; and the gradient of the logits: that of the sum times `scale`.

The first `count` lanes are images, with labels of 0 to 9. With p = softmax(logits), the loss of an image is -log p[label],
and its gradient p - 1 at the label, p elsewhere. */
static float cross_entropy(const lanes *logits, const int64_t *labels, int count, float scale, lanes *gradient) {
  lanes largest = logits[0], sum = {0};
  for (int class = 1; class < CLASSES; class++) largest = larger(largest, logits[class]);
  for (int class = 0; class < CLASSES; class++)
    sum += gradient[class] = exponential_of_minus(largest - logits[class]);
  lanes factor = scale / sum;
  for (int lane = count; lane < LANES; lane++) factor[lane] = 0;
  for (int class = 0; class < CLASSES; class++) gradient[class] *= factor;
  float loss = 0;
  for (int lane = 0; lane < count; lane++) {
    gradient[labels[lane]][lane] -= scale;
    loss += logf(sum[lane]) + largest[lane] - logits[labels[lane]][lane];
  }
  return loss;
}
