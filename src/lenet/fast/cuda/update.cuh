/* The end of a step: gradients of the linear layers' weights, sums over blocks, and the optimizer's update of each parameter.

All blocks share this work, in tiles. Every sum has a fixed order, so that a step always gives the same bits. */

#pragma once

#define PLAIN_SGD 0
#define MOMENTUM_SGD 1
#define ADAM 2 /* AdamW, too: the coefficients make the difference */

/* Of one step. For SGD: weight decay, momentum, factors of the gradient and of the momentum in the step, learning rate.
For Adam: weight decay, factor of the parameter (decoupled decay), 1 - beta1, beta2, 1 - beta2, step size, factor of the
square root, epsilon. The step size and that factor have the corrections of the bias in them. */
struct Coefficients {
  float of[8];

  DEVICE Coefficients(const float *from) {
    UNROLL for (int k = 0; k < 8; ++k) of[k] = __ldg(from + k);
  }
};

/* A parameter, and what the optimizer keeps of it, loaded before its gradient is known, as that takes a while. */
struct Parameter {
  int layer, index;
  bool is_bias;
  float value, first, second;

  DEVICE Parameter(const Arguments &a, int layer, bool is_bias, int index)
      : layer(layer), index(index), is_bias(is_bias), first(0), second(0) {
    value = __ldcg(place(a.parameters));
    if (OPTIMIZER != PLAIN_SGD) first = __ldcg(place(a.first));
    if (OPTIMIZER == ADAM) second = __ldcg(place(a.second));
  }

  DEVICE float *place(const Tensors &tensors) const {
    return (is_bias ? tensors.bias[layer] : tensors.weight[layer]) + index;
  }

  /* As torch.optim.SGD, Adam and AdamW do. */
  DEVICE void update(const Arguments &a, float gradient, const Coefficients &c, bool is_last_step) {
    if (is_last_step) *place(a.gradients) = gradient;
    gradient += c.of[0] * value;
    if (OPTIMIZER == ADAM) {
      first += c.of[2] * (gradient - first);
      second = c.of[3] * second + c.of[4] * gradient * gradient;
      value = c.of[1] * value - c.of[5] * (first / (sqrtf(second) * c.of[6] + c.of[7]));
      *place(a.second) = second;
    } else if (OPTIMIZER == MOMENTUM_SGD) {
      first = c.of[1] * first + gradient;
      value -= c.of[4] * (c.of[2] * gradient + c.of[3] * first);
    } else {
      value -= c.of[4] * gradient;
    }
    if (OPTIMIZER != PLAIN_SGD) *place(a.first) = first;
    *place(a.parameters) = value;
  }
};

/* The linear layers' parameters, in tiles of 24 outputs by 32 inputs. The input behind the last one is 1: the bias's. */
enum { TILE_OUTPUTS = 24, TILE_INPUTS = 32, FC1_TILES = 5 * 13, FC2_TILES = 4 * 4, FC3_TILES = 3 };
enum { LINEAR_TILES = FC1_TILES + FC2_TILES + FC3_TILES };

struct Products {
  float of[WARPS][TILE_OUTPUTS][TILE_INPUTS];
};
static_assert(sizeof(Products) <= SCRATCH * sizeof(float), "scratch is too small");

/* A warp takes every 16th image, eight at a time, so that there are enough loads on their way; each thread has 6 x 4 sums.
Reads beyond the last output are of numbers that follow in the workspace; their results are not used. */
DEVICE void update_linear(Shared &s, int tile, const Arguments &a, const Workspace &kept, int count,
                          const Coefficients &coefficients, bool is_last_step) {
  const int tid = opaque(threadIdx.x), warp = tid / 32, lane = tid % 32;
  Products &products = *reinterpret_cast<Products *>(scratch(s));
  int layer = FC1, outputs = 120, inputs = 400, stride = 120;
  const float *values = kept.features, *outer = kept.outer1;
  if (tile >= FC1_TILES + FC2_TILES) {
    tile -= FC1_TILES + FC2_TILES, layer = FC3, outputs = 10, inputs = 84, stride = 12;
    values = kept.hidden2, outer = kept.outer3;
  } else if (tile >= FC1_TILES) {
    tile -= FC1_TILES, layer = FC2, outputs = 84, inputs = 120, stride = 84;
    values = kept.hidden1, outer = kept.outer2;
  }
  const int across = inputs / TILE_INPUTS + 1, first_output = tile / across * TILE_OUTPUTS;
  const int first_input = tile % across * TILE_INPUTS, input = first_input + lane % 8 * 4;
  values += input;
  outer += first_output + lane / 8 * 6;
  float sum[6][4] = {};
  ROLLED for (int image = warp; image < count; image += 8 * WARPS) {
    float4 x[8];
    float2 d[8][3];
    UNROLL for (int j = 0; j < 8; ++j) {
      const int at = image + j * WARPS;
      x[j] = {input == inputs ? 1.f : 0.f, 0.f, 0.f, 0.f};
      if (at < count && input < inputs) x[j] = __ldcg(reinterpret_cast<const float4 *>(values + at * inputs));
      UNROLL for (int m = 0; m < 3; ++m) {
        d[j][m] = {0.f, 0.f};
        if (at < count) d[j][m] = __ldcg(reinterpret_cast<const float2 *>(outer + at * stride) + m);
      }
    }
    UNROLL for (int j = 0; j < 8; ++j)
      UNROLL for (int m = 0; m < 6; ++m) {
        const float gradient = m % 2 ? d[j][m / 2].y : d[j][m / 2].x;
        sum[m][0] += gradient * x[j].x, sum[m][1] += gradient * x[j].y;
        sum[m][2] += gradient * x[j].z, sum[m][3] += gradient * x[j].w;
      }
  }
  UNROLL for (int m = 0; m < 6; ++m)
    store4(&products.of[warp][lane / 8 * 6 + m][lane % 8 * 4], sum[m][0], sum[m][1], sum[m][2], sum[m][3]);
  __syncthreads();
  ROLLED for (int i = tid; i < TILE_OUTPUTS * TILE_INPUTS; i += THREADS) {
    const int row = first_output + i / TILE_INPUTS, column = first_input + i % TILE_INPUTS;
    if (row >= outputs || column > inputs) continue;
    const bool is_bias = column == inputs;
    Parameter parameter(a, layer, is_bias, is_bias ? row : row * inputs + column);
    float gradient = 0;
    UNROLL for (int k = 0; k < WARPS; ++k) gradient += products.of[k][i / TILE_INPUTS][i % TILE_INPUTS];
    parameter.update(a, gradient, coefficients, is_last_step);
  }
  __syncthreads();
}

/* The convolutions' parameters, and the step's loss and right answers: 64 sums over the blocks that had images a tile. */
enum { SUM_TILES = (SUMS + 63) / 64 };

DEVICE void update_convolutions(Shared &s, int tile, const Arguments &a, const Workspace &kept, int blocks, int step,
                                int count, const Coefficients &coefficients) {
  const int tid = opaque(threadIdx.x), at = tile * 64 + tid % 64, first = tid / 64;
  const int layer = at < WEIGHT_2 ? CONV1 : CONV2;
  const bool is_bias = layer == CONV1 ? at >= BIAS_1 : at >= BIAS_2;
  const int index = at - (is_bias ? (layer == CONV1 ? BIAS_1 : BIAS_2) : (layer == CONV1 ? 0 : WEIGHT_2));
  const bool is_parameter = at < LOSS;
  Parameter parameter(a, layer, is_bias, is_parameter ? index : 0);
  float *parts = scratch(s), sum = 0;
  if (at < SUMS) {
    const float *from = kept.partial + first * PARTIAL + at;
    UNROLL_BY(16) for (int block = first; block < blocks; block += THREADS / 64, from += THREADS / 64 * PARTIAL) sum += __ldcg(from);
  }
  parts[tid] = sum;
  __syncthreads();
  if (tid < 64) {
    UNROLL for (int k = 1; k < THREADS / 64; ++k) sum += parts[tid + 64 * k];
    if (is_parameter) parameter.update(a, sum, coefficients, step == a.steps - 1);
    if (at == LOSS) a.losses[step] = sum / count;
    if (at == CORRECT) a.correct[step] = sum;
  }
  __syncthreads();
}
