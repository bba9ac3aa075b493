/* The linear layers and the loss, forward and backward, of the images that a cluster has at hand.

Each phase is so short that waiting for memory counts most: weights from global memory are loaded some phases ahead. */

#pragma once

/* The first layer, 400 to 120: partial sums over this block's slice of the inputs, for the blocks that own the images.
In a cluster, tiles of four outputs for all images, from a quarter of the slice; the weights are in shared memory.
Otherwise, four threads side by side read an output's weights from the L2 cache, in whole sectors of 32 bytes. */
DEVICE void forward_fc1(Shared &s, int tid, int rank, const float *weight) {
#if CLUSTER > 1
  if (tid >= 120) return;
  const int quarter = tid / 30, output = tid % 30;
  float sum[4][TOGETHER] = {};
  UNROLL_BY(2) for (int j = quarter; j < SLICE / 4; j += 4) {
    float4 w[4];
    EACH(k, 4) w[k] = load4(&s.fc1[output + 30 * k][4 * j]);
    EACH(image, TOGETHER) {
      const float4 x = load4(&s.features[image][4 * j]);
      EACH(k, 4) sum[k][image] += dot(w[k], x);
    }
  }
  EACH(image, TOGETHER) EACH(k, 4)
    in_block(s, image / IMAGES).hidden1_parts[rank * 4 + quarter][image % IMAGES][output + 30 * k] = sum[k][image];
#else
  if (tid >= 480) return;
  const int quarter = tid % 4, output = tid / 4;
  const float4 *row = reinterpret_cast<const float4 *>(weight + output * 400) + quarter;
  float sum[IMAGES] = {};
  UNROLL_BY(13) for (int j = 0; j < 25; ++j) {
    const float4 w = __ldcg(row + 4 * j);
    EACH(image, IMAGES) sum[image] += dot(w, load4(&s.features[image][4 * (quarter + 4 * j)]));
  }
  EACH(image, IMAGES) s.hidden1_parts[quarter][image][output] = sum[image];
#endif
}

DEVICE void finish_fc1(Shared &s, int tid, int slot, const Workspace &kept) {
  if (tid >= 120 * IMAGES) return;
  const int image = tid / 120, output = tid % 120;
  float sum = s.fc_bias[output];
  EACH(k, CLUSTER * 4) sum += s.hidden1_parts[k][image][output];
  s.hidden1[image][output] = kept.hidden1[(slot + image) * 120 + output] = activation(scaled(sum));
}

/* The second layer, 120 to 84: four threads an output, not those that are busy with the first layer. */
DEVICE void load_fc2(float4 (&w)[8], int output, int quarter, const float *weight) {
  const float4 *row = reinterpret_cast<const float4 *>(weight + output * 120) + quarter;
  if (output >= 0 && output < 84) EACH(j, 8) if (quarter + 4 * j < 30) w[j] = __ldcg(row + 4 * j);
}

DEVICE void forward_fc2(Shared &s, int tid, int slot, int output, const float4 (&w)[8], const Workspace &kept) {
  if (output < 0 || output >= 84) return;
  const unsigned half_warp = tid % 32 < 16 ? 0xffffu : 0xffff0000u; /* of the last warp, only one has outputs */
  const int quarter = tid % 4, image = quarter;
  float sum[IMAGES] = {};
  EACH(j, 8) if (quarter + 4 * j < 30) EACH(i, IMAGES) sum[i] += dot(w[j], load4(&s.hidden1[i][4 * (quarter + 4 * j)]));
  EACH(i, IMAGES) EACH(k, 2) sum[i] += __shfl_xor_sync(half_warp, sum[i], k + 1);
  if (image >= IMAGES) return;
  const float value = activation(scaled(s.fc_bias[120 + output] + sum[image ? IMAGES - 1 : 0]));
  s.hidden2[image][output] = kept.hidden2[(slot + image) * 84 + output] = value;
}

/* The third layer, 84 to 10: 16 threads an output. */
DEVICE void forward_fc3(Shared &s, int tid) {
  if (tid >= 160 * IMAGES) return;
  const int image = tid / 160, output = tid / 16 % 10, first = tid % 16;
  float sum = 0;
  EACH(j, 6) if (j * 16 + first < 84) sum += s.fc3[output * 84 + j * 16 + first] * s.hidden2[image][j * 16 + first];
  EACH(k, 4) sum += __shfl_xor_sync(~0u, sum, 8 >> k);
  if (first == 0) s.logits[image][output] = sum + s.fc_bias[204 + output];
}

/* Whether the largest logit is the label's; the first one of equal ones, and what is not a number is largest. */
DEVICE bool is_right(const float (&logits)[12], int label) {
  int winner = 0;
  EACH(k, 10)
    if (logits[k] > logits[winner] || (logits[k] != logits[k] && logits[winner] == logits[winner])) winner = k;
  return winner == label;
}

/* The cross entropy, and back through the third layer, by a thread for each of its inputs. With p = softmax(logits),
the loss is -log p[label], and its gradient p - 1 at the label and p elsewhere, divided by the number of images. A label
below 0 is no image, but fills up a group; one above 9 makes the loss NaN. */
DEVICE void loss_and_back(Shared &s, int tid, int slot, int count, const Workspace &kept) {
  if (tid >= 84 * IMAGES) return;
  const int image = tid / 84, input = tid % 84, label = s.labels[image];
  float power[12], largest, sum = 0, inner = 0;
  load_by_4(power, s.logits[image]);
  largest = power[0];
  EACH(k, 10) largest = fmaxf(largest, power[k]); /* this drops a NaN, but the sum has it */
  EACH(k, 10) sum += power[k] = power_of_2((power[k] - largest) * LOG2_E);
  const float scale = label < 0 ? 0.f : 1.f / count, share = scale * reciprocal(sum);
  EACH(k, 10) {
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

/* Back through the second layer, from 84 to 120, for all blocks of the cluster: four threads an input. */
DEVICE void back_fc2(Shared &s, int tid, int rank, int slot, const float (&w)[21], const Workspace &kept) {
  if (tid >= 480) return;
  const int input = tid / 4, quarter = tid % 4, image = quarter;
  float sum[IMAGES] = {};
  EACH(j, 21) EACH(i, IMAGES) sum[i] += s.outer2[i][quarter * 21 + j] * w[j];
  EACH(i, IMAGES) EACH(k, 2) sum[i] += __shfl_xor_sync(~0u, sum[i], k + 1);
  if (image >= IMAGES) return;
  const float outer = sum[image ? IMAGES - 1 : 0] * derivative(s.hidden1[image][input]);
  kept.outer1[(slot + image) * 120 + input] = outer;
  EACH(block, CLUSTER) in_block(s, block).outer1[input][rank * IMAGES + image] = outer;
}

/* Back through the first layer, from 120 to this block's slice of 400, in tiles of 4 inputs, from 30 outputs. */
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
    EACH(image, TOGETHER) {
      const float outer = s.outer1[output][image];
      sum[image][0] += w.x * outer, sum[image][1] += w.y * outer;
      sum[image][2] += w.z * outer, sum[image][3] += w.w * outer;
    }
  }
  EACH(image, TOGETHER) store4(&in_block(s, image / IMAGES).inner1_parts[part][image % IMAGES][rank * SLICE + input],
                               sum[image][0], sum[image][1], sum[image][2], sum[image][3]);
}

/* All of it. `slot`: where this block's first image is in the workspace; `count`: how many images the step has. */
DEVICE void linear_layers(Shared &s, int tid, int rank, int slot, int count, const Tensors &p, const Workspace &kept) {
  const int output = tid / 4 - 32, quarter = tid % 4;
  float4 fc2[8];
  float fc2_back[21];
  load_fc2(fc2, output, quarter, p.weight[FC2]);
  forward_fc1(s, tid, rank, p.weight[FC1]);
  cluster_barrier();
  finish_fc1(s, tid, slot, kept);
  __syncthreads();
  forward_fc2(s, tid, slot, output, fc2, kept);
  EACH(j, 21) fc2_back[j] = __ldcg(p.weight[FC2] + (quarter * 21 + j) * 120 + min(tid / 4, 119));
  __syncthreads();
  forward_fc3(s, tid);
  __syncthreads();
  loss_and_back(s, tid, slot, count, kept);
  __syncthreads();
  back_fc2(s, tid, rank, slot, fc2_back, kept);
  cluster_barrier();
  back_fc1(s, tid, rank, p.weight[FC1]);
  cluster_barrier();
}
