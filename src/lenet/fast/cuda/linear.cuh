/* The linear layers and the loss, forward and backward, of the images that a cluster has at hand.

Each of these phases is so short that waiting for memory counts most: what a later phase needs from global memory is
therefore loaded some phases ahead. */

#pragma once

/* The first layer, 400 to 120: partial sums of this block's slice of the inputs, sent to the blocks that own the images.

With a cluster the weights are in shared memory: tiles of four outputs for all images, from a quarter of the slice. Without,
four threads side by side read an output's weights in whole sectors of 32 bytes. */
DEVICE void forward_fc1(Shared &s, int tid, int rank, const float *weight) {
#if CLUSTER > 1
  if (tid >= 120) return;
  const int quarter = tid / 30, output = tid % 30;
  float sum[4][TOGETHER] = {};
  UNROLL_BY(2) for (int j = quarter; j < SLICE / 4; j += 4) {
    float4 w[4];
    UNROLL for (int k = 0; k < 4; ++k) w[k] = load4(&s.fc1[output + 30 * k][4 * j]);
    UNROLL for (int image = 0; image < TOGETHER; ++image) {
      const float4 x = load4(&s.features[image][4 * j]);
      UNROLL for (int k = 0; k < 4; ++k) sum[k][image] += dot(w[k], x);
    }
  }
  UNROLL for (int image = 0; image < TOGETHER; ++image)
    UNROLL for (int k = 0; k < 4; ++k)
      in_block(s, image / IMAGES).hidden1_parts[rank * 4 + quarter][image % IMAGES][output + 30 * k] = sum[k][image];
#else
  if (tid >= 480) return;
  const int quarter = tid % 4, output = tid / 4;
  const float4 *row = reinterpret_cast<const float4 *>(weight + output * 400) + quarter;
  float sum[IMAGES] = {};
  UNROLL_BY(13) for (int j = 0; j < 25; ++j) {
    const float4 w = __ldcg(row + 4 * j);
    UNROLL for (int image = 0; image < IMAGES; ++image) sum[image] += dot(w, load4(&s.features[image][4 * (quarter + 4 * j)]));
  }
  UNROLL for (int image = 0; image < IMAGES; ++image) s.hidden1_parts[quarter][image][output] = sum[image];
#endif
}

DEVICE void finish_fc1(Shared &s, int tid, int slot, const Workspace &kept) {
  if (tid >= 120 * IMAGES) return;
  const int image = tid / 120, output = tid % 120;
  float sum = s.fc_bias[output];
  UNROLL for (int k = 0; k < CLUSTER * 4; ++k) sum += s.hidden1_parts[k][image][output];
  s.hidden1[image][output] = kept.hidden1[(slot + image) * 120 + output] = activation(scaled(sum));
}

/* The second layer, 120 to 84: four threads an output, for all images of the block. Its weights come from the L2 cache: those
of this thread's output for the way forward, and 21 of one input for the way back. */
struct Fc2 {
  int output, quarter;
  float4 forward[8];
  float back[21];

  DEVICE bool has_output() const { return output >= 0 && output < 84; }

  DEVICE Fc2(int tid) : output(tid / 4 - 32), quarter(tid % 4) {} /* other threads than those which are busy with fc1 */

  DEVICE void load_forward(const float *weight) {
    if (!has_output()) return;
    const float4 *row = reinterpret_cast<const float4 *>(weight + output * 120) + quarter;
    UNROLL for (int j = 0; j < 8; ++j)
      if (quarter + 4 * j < 30) forward[j] = __ldcg(row + 4 * j);
  }

  DEVICE void load_back(const float *weight, int tid) {
    const float *column = weight + quarter * 21 * 120 + min(tid / 4, 119);
    UNROLL for (int j = 0; j < 21; ++j) back[j] = __ldcg(column + j * 120);
  }
};

DEVICE void forward_fc2(Shared &s, int tid, int slot, const Fc2 &fc2, const Workspace &kept) {
  if (!fc2.has_output()) return;
  const unsigned half_warp = tid % 32 < 16 ? 0xffffu : 0xffff0000u; /* the last warp has outputs for one half only */
  float sum[IMAGES] = {};
  UNROLL for (int j = 0; j < 8; ++j)
    if (fc2.quarter + 4 * j < 30)
      UNROLL for (int image = 0; image < IMAGES; ++image)
        sum[image] += dot(fc2.forward[j], load4(&s.hidden1[image][4 * (fc2.quarter + 4 * j)]));
  UNROLL for (int image = 0; image < IMAGES; ++image) {
    sum[image] += __shfl_xor_sync(half_warp, sum[image], 1);
    sum[image] += __shfl_xor_sync(half_warp, sum[image], 2);
  }
  const int image = fc2.quarter;
  if (image < IMAGES)
    s.hidden2[image][fc2.output] = kept.hidden2[(slot + image) * 84 + fc2.output] =
        activation(scaled(s.fc_bias[120 + fc2.output] + sum[image ? IMAGES - 1 : 0]));
}

/* The third layer, 84 to 10: 16 threads an output. */
DEVICE void forward_fc3(Shared &s, int tid) {
  if (tid >= 160 * IMAGES) return;
  const int image = tid / 160, output = tid / 16 % 10, first = tid % 16;
  float sum = 0;
  UNROLL for (int j = 0; j < 6; ++j)
    if (j * 16 + first < 84) sum += s.fc3[output * 84 + j * 16 + first] * s.hidden2[image][j * 16 + first];
  UNROLL for (int k = 8; k; k /= 2) sum += __shfl_xor_sync(~0u, sum, k);
  if (first == 0) s.logits[image][output] = sum + s.fc_bias[204 + output];
}

/* Whether an image's largest logit is its label's; of equal ones the first counts, and what is not a number is largest. */
DEVICE bool is_right(const float (&logits)[12], int label) {
  int winner = 0;
  UNROLL for (int k = 1; k < 10; ++k)
    if (logits[k] > logits[winner] || (logits[k] != logits[k] && logits[winner] == logits[winner])) winner = k;
  return winner == label;
}

/* The cross entropy, and back through the third layer; each thread computes the softmax for one of its 84 inputs.

With p = softmax(logits), the loss of an image is -log p[label], and its gradient p - 1 at the label and p elsewhere, divided
by the number of images. A label below 0 marks an image that only fills up a block; one above 9 gives no number. */
DEVICE void loss_and_back(Shared &s, int tid, int slot, int count, const Workspace &kept) {
  if (tid >= 84 * IMAGES) return;
  const int image = tid / 84, input = tid % 84, label = s.labels[image];
  float power[12], largest, sum = 0, inner = 0;
  load_by_4(power, s.logits[image]);
  largest = power[0];
  UNROLL for (int k = 1; k < 10; ++k) largest = fmaxf(largest, power[k]); /* one that is not a number comes back in `sum` */
  UNROLL for (int k = 0; k < 10; ++k) sum += power[k] = power_of_2((power[k] - largest) * LOG2_E);
  const float scale = label < 0 ? 0.f : 1.f / count, share = scale * reciprocal(sum);
  UNROLL for (int k = 0; k < 10; ++k) {
    const float gradient = power[k] * share - (k == label ? scale : 0.f);
    inner += gradient * s.fc3[k * 84 + input];
    if (input == k) kept.outer3[(slot + image) * 12 + k] = gradient;
  }
  s.outer2[image][input] = kept.outer2[(slot + image) * 84 + input] = inner * derivative(s.hidden2[image][input]);
  if (input == 0 && label >= 0) {
    s.totals[image][0] += logf(sum) + largest - (label < 10 ? s.logits[image][label] : nanf(""));
    s.totals[image][1] += is_right(s.logits[image], label);
  }
}

/* Back through the second layer, from 84 to 120; what the first layer needs goes to all blocks of the cluster. */
DEVICE void back_fc2(Shared &s, int tid, int rank, int slot, const Fc2 &fc2, const Workspace &kept) {
  if (tid >= 480) return;
  const int input = tid / 4;
  float sum[IMAGES] = {};
  UNROLL for (int j = 0; j < 21; ++j)
    UNROLL for (int image = 0; image < IMAGES; ++image) sum[image] += s.outer2[image][fc2.quarter * 21 + j] * fc2.back[j];
  UNROLL for (int image = 0; image < IMAGES; ++image) {
    sum[image] += __shfl_xor_sync(~0u, sum[image], 1);
    sum[image] += __shfl_xor_sync(~0u, sum[image], 2);
  }
  const int image = fc2.quarter;
  if (image < IMAGES) {
    const float outer = sum[image ? IMAGES - 1 : 0] * derivative(s.hidden1[image][input]);
    kept.outer1[(slot + image) * 120 + input] = outer;
    UNROLL for (int block = 0; block < CLUSTER; ++block) in_block(s, block).outer1[input][rank * IMAGES + image] = outer;
  }
}

/* Back through the first layer, from 120 to this block's slice of 400: tiles of 4 inputs for all images, from 30 outputs. */
DEVICE void back_fc1(Shared &s, int tid, int rank, const float *weight) {
  if (tid >= SLICE) return;
  const int part = tid / (SLICE / 4), input = tid % (SLICE / 4) * 4;
  float sum[TOGETHER][4] = {};
  UNROLL_BY((CLUSTER > 1 ? 3 : 15)) for (int output = part * 30; output < part * 30 + 30; ++output) {
#if CLUSTER > 1
    const float4 w = load4(&s.fc1[output][input]);
#else
    const float4 w = __ldcg(reinterpret_cast<const float4 *>(weight + output * 400 + input));
#endif
    UNROLL for (int image = 0; image < TOGETHER; ++image) {
      const float outer = s.outer1[output][image];
      sum[image][0] += w.x * outer, sum[image][1] += w.y * outer;
      sum[image][2] += w.z * outer, sum[image][3] += w.w * outer;
    }
  }
  UNROLL for (int image = 0; image < TOGETHER; ++image)
    store4(&in_block(s, image / IMAGES).inner1_parts[part][image % IMAGES][rank * SLICE + input], sum[image][0],
           sum[image][1], sum[image][2], sum[image][3]);
}

/* All of it. `slot` is where this block's first image is in the workspace, `count` how many images the step has. */
DEVICE void linear_layers(Shared &s, int tid, int rank, int slot, int count, const Tensors &parameters,
                          const Workspace &kept) {
  Fc2 fc2(tid);
  fc2.load_forward(parameters.weight[FC2]);
  forward_fc1(s, tid, rank, parameters.weight[FC1]);
  cluster_barrier();
  finish_fc1(s, tid, slot, kept);
  __syncthreads();
  forward_fc2(s, tid, slot, fc2, kept);
  fc2.load_back(parameters.weight[FC2], tid);
  __syncthreads();
  forward_fc3(s, tid);
  __syncthreads();
  loss_and_back(s, tid, slot, count, kept);
  __syncthreads();
  back_fc2(s, tid, rank, slot, fc2, kept);
  cluster_barrier();
  back_fc1(s, tid, rank, parameters.weight[FC1]);
  cluster_barrier();
}
