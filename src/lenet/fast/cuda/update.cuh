/* The end of a step: gradients of the linear layers' weights, sums over blocks, and the optimizer's update of each
parameter. All blocks share this work, in tiles. */

#pragma once

#define PLAIN_SGD 0
#define MOMENTUM_SGD 1
#define ADAM 2 /* AdamW, too: the coefficients make the difference */

/* A step, and the optimizer's coefficients. SGD: weight decay, momentum, factors of gradient and momentum in the step,
learning rate. Adam: weight decay, factor of the parameter for decoupled decay, 1 - beta1, beta2, 1 - beta2, step size,
factor of the square root, epsilon; the step size and that factor have the corrections of the bias in them. */
struct Step {
  int number, count; /* of images */
  bool is_last;
  float c[8];
};

/* A parameter and the optimizer's state of it, loaded before its gradient is known, as that takes a while. */
struct Parameter {
  int layer, index;
  bool is_bias;
  float value, first, second;

  DEVICE Parameter(const Arguments &a, int layer, bool is_bias, int index)
      : layer(layer), index(index), is_bias(is_bias) {
    value = __ldcg(in(a.parameters));
    first = OPTIMIZER == PLAIN_SGD ? 0 : __ldcg(in(a.first));
    second = OPTIMIZER == ADAM ? __ldcg(in(a.second)) : 0;
  }

  DEVICE float *in(const Tensors &all) const { return (is_bias ? all.bias[layer] : all.weight[layer]) + index; }

  /* As torch.optim.SGD, Adam and AdamW do. */
  DEVICE void update(const Arguments &a, const Step &step, float gradient) {
    const float(&c)[8] = step.c;
    if (step.is_last) *in(a.gradients) = gradient;
    gradient += c[0] * value;
    if (OPTIMIZER == ADAM) {
      first += c[2] * (gradient - first);
      second = c[3] * second + c[4] * gradient * gradient;
      value = c[1] * value - c[5] * (first / (sqrtf(second) * c[6] + c[7]));
      *in(a.second) = second;
    } else if (OPTIMIZER == MOMENTUM_SGD) {
      first = c[1] * first + gradient;
      value -= c[4] * (c[2] * gradient + c[3] * first);
    } else {
      value -= c[4] * gradient;
    }
    if (OPTIMIZER != PLAIN_SGD) *in(a.first) = first;
    *in(a.parameters) = value;
  }
};

/* The linear layers' parameters, in tiles of 24 outputs by 32 inputs; the input behind the last one is 1, for the bias.
A warp takes every 16th image, eight at a time, for enough loads on their way; each thread has 6 x 4 sums. Reads beyond
the last output find other numbers of the workspace, and the results are not used. */
enum { FC2_TILES = 5 * 13, FC3_TILES = FC2_TILES + 4 * 4, LINEAR_TILES = FC3_TILES + 3 }; /* where each layer's begin */
typedef float Products[WARPS][24][32];
static_assert(sizeof(Products) <= SCRATCH_BYTES, "scratch is too small");

DEVICE void update_linear(Shared &s, int tile, const Arguments &a, const Workspace &kept, const Step &step) {
  const int tid = opaque(threadIdx.x), warp = tid / 32, lane = tid % 32;
  Products &products = *reinterpret_cast<Products *>(scratch(s));
  int layer = FC1, outputs = 120, inputs = 400, stride = 120;
  const float *values = kept.features, *outer = kept.outer1;
  if (tile >= FC3_TILES) {
    tile -= FC3_TILES, layer = FC3, outputs = 10, inputs = 84, stride = 12, values = kept.hidden2, outer = kept.outer3;
  } else if (tile >= FC2_TILES) {
    tile -= FC2_TILES, layer = FC2, outputs = 84, inputs = 120, stride = 84, values = kept.hidden1, outer = kept.outer2;
  }
  const int across = inputs / 32 + 1, first_output = tile / across * 24, first_input = tile % across * 32;
  const int input = first_input + lane % 8 * 4;
  values += input, outer += first_output + lane / 8 * 6;
  float sum[6][4] = {};
  ROLLED for (int first = warp; first < step.count; first += 8 * WARPS) {
    float4 x[8];
    float2 d[8][3];
    EACH(j, 8) {
      const int image = first + j * WARPS;
      const bool is_real = image < step.count;
      x[j] = {1.f, 0.f, 0.f, 0.f}; /* for the bias; elsewhere its products are zero, or not used */
      if (is_real && input < inputs) x[j] = __ldcg(reinterpret_cast<const float4 *>(values + image * inputs));
      EACH(m, 3) d[j][m] = {0.f, 0.f};
      if (is_real) EACH(m, 3) d[j][m] = __ldcg(reinterpret_cast<const float2 *>(outer + image * stride) + m);
    }
    EACH(j, 8) EACH(m, 6) {
      const float gradient = m % 2 ? d[j][m / 2].y : d[j][m / 2].x;
      sum[m][0] += gradient * x[j].x, sum[m][1] += gradient * x[j].y;
      sum[m][2] += gradient * x[j].z, sum[m][3] += gradient * x[j].w;
    }
  }
  EACH(m, 6) store4(&products[warp][lane / 8 * 6 + m][lane % 8 * 4], sum[m][0], sum[m][1], sum[m][2], sum[m][3]);
  __syncthreads();
  ROLLED for (int i = tid; i < 24 * 32; i += THREADS) {
    const int row = first_output + i / 32, column = first_input + i % 32;
    if (row >= outputs || column > inputs) continue;
    Parameter parameter(a, layer, column == inputs, column == inputs ? row : row * inputs + column);
    float gradient = 0;
    EACH(k, WARPS) gradient += products[k][i / 32][i % 32];
    parameter.update(a, step, gradient);
  }
  __syncthreads();
}

/* The convolutions' parameters, the loss and the right answers: 64 sums over the blocks that had images are a tile. */
enum { SUM_TILES = (SUMS + 63) / 64 };

DEVICE void update_convolutions(Shared &s, int tile, const Arguments &a, const float *partial, int blocks,
                                const Step &step) {
  const int tid = opaque(threadIdx.x), at = tile * 64 + tid % 64, first = tid / 64;
  const bool is_sum = at >= LOSS, is_first_layer = at < WEIGHT_2;
  const bool is_bias = is_first_layer ? at >= BIAS_1 : at >= BIAS_2;
  const int begin = is_first_layer ? (is_bias ? BIAS_1 : 0) : is_bias ? BIAS_2 : WEIGHT_2;
  Parameter parameter(a, is_first_layer ? CONV1 : CONV2, is_bias, is_sum ? 0 : at - begin);
  float *parts = scratch(s), sum = 0;
  const float *from = partial + first * PARTIAL + at;
  if (at < SUMS)
    UNROLL_BY(16) for (int block = first; block < blocks; block += 8, from += 8 * PARTIAL) sum += __ldcg(from);
  parts[tid] = sum;
  __syncthreads();
  if (tid < 64) {
    EACH(k, 7) sum += parts[tid + 64 * (k + 1)];
    if (at == LOSS) a.losses[step.number] = sum / step.count;
    else if (at == CORRECT) a.correct[step.number] = sum;
    else if (!is_sum) parameter.update(a, step, sum);
  }
  __syncthreads();
}
