/* The two convolutions with activation and pooling, forward and backward, of a block's images.

A warp's multiply-add takes one of four issue slots in a clock of a multiprocessor; a number that a warp loads from
shared memory takes about a whole clock, even if all lanes read the same. So threads compute tiles of results from
numbers in their registers, as large as registers allow: 2.5 to 7 multiply-adds for each number loaded. */

#pragma once

/* The first block, in tiles of 2 x 4 outputs, which are two windows, of three channels one after another: 196 tasks an
image. Full warps take most. The last 4 or 8 tasks are divided by channels, or one warp would be busy when all others
are done. */
DEVICE void forward1(Shared &s, int tid) {
  constexpr int TASKS = 196 * IMAGES, IN_FULL_WARPS = TASKS / 32 * 32;
  int task = tid, channel = task / (TASKS / 2) * 3, end = channel + 3;
  if (tid >= IN_FULL_WARPS) {
    task = IN_FULL_WARPS + tid % 32, channel = 3 + (tid - IN_FULL_WARPS) / 32;
    end = task < TASKS ? min(channel + 1, 6) : 0;
  }
  const int image = task / 98 % IMAGES, row = task % 98 / 7, column = task % 7;
  if (channel >= end) return;
  float x[6][8];
  EACH(y, 6) load_by_4(x[y], &s.images[image][(2 * row + y) * 36 + 4 * column]);
  ROLLED for (; channel < end; ++channel) {
    float w[28], sum[2][4];
    load_by_4(w, s.weight1[channel]);
    EACH(y, 2) EACH(z, 4) sum[y][z] = s.bias1[channel];
    EACH(k, 25) EACH(y, 2) EACH(z, 4) sum[y][z] += w[k] * x[y + k / 5][z + k % 5];
    const float left = pool(sum[0][0], sum[0][1], sum[1][0], sum[1][1]);
    const float right = pool(sum[0][2], sum[0][3], sum[1][2], sum[1][3]);
    float *slopes = &s.slope1[image][channel][2 * row * 28 + 4 * column];
    EACH(y, 2) store4(slopes + y * 28, sum[y][0], sum[y][1], sum[y][2], sum[y][3]);
    store2(&s.pooled1[image][channel][pooled1_row(row) + 2 * column], left, right);
  }
}

/* The second convolution's sums, in tiles of 2 rows of 10 outputs, over two of the six input channels. */
DEVICE void sums2(Shared &s, int tid) {
  if (tid >= 240 * IMAGES) return;
  const int third = tid / (80 * IMAGES), image = tid / 80 % IMAGES, channel = tid % 80 / 5, row = tid % 5;
  float sum[20] = {};
  ROLLED for (int in = 2 * third; in < 2 * third + 2; ++in) {
    float w[28];
    load_by_4(w, s.weight2[channel][in]);
    EACH(y, 6) {
      float x[14];
      load_by_2(x, &s.pooled1[image][in][row * 42 + pooled1_row(y)]);
      EACH(k, 5) EACH(z, 10) {
        if (y < 5) sum[z] += w[y * 5 + k] * x[z + k];
        if (y > 0) sum[10 + z] += w[y * 5 - 5 + k] * x[z + k];
      }
    }
  }
  float *to = (third ? s.thirds[third - 1][image] : s.slope2[image]) + channel * 100 + row * 20;
  EACH(k, 5) store4(to + 4 * k, sum[4 * k], sum[4 * k + 1], sum[4 * k + 2], sum[4 * k + 3]);
}

/* Its activation and pooling. The pooled values go to the block of the cluster that multiplies them, and to global
memory for the gradient of the weights, where this block's first image is at `slot`. */
DEVICE void pool2(Shared &s, int tid, int rank, int slot, const Workspace &kept) {
  EACH(k, (400 * IMAGES + THREADS - 1) / THREADS) {
    const int task = tid + k * THREADS, image = task / 400, feature = task % 400, channel = feature / 25;
    if (task >= 400 * IMAGES) break;
    const int corner = channel * 100 + feature % 25 / 5 * 20 + feature % 5 * 2;
    float2 row[2];
    EACH(y, 2) {
      const int at = corner + 10 * y;
      const float2 a = load2(&s.slope2[image][at]), b = load2(&s.thirds[0][image][at]);
      const float2 c = load2(&s.thirds[1][image][at]);
      row[y] = {s.bias2[channel] + (a.x + b.x + c.x), s.bias2[channel] + (a.y + b.y + c.y)};
    }
    const float pooled = pool(row[0].x, row[0].y, row[1].x, row[1].y);
    EACH(y, 2) store2(&s.slope2[image][corner + 10 * y], row[y].x, row[y].y);
    in_block(s, feature / SLICE).features[rank * IMAGES + image][feature % SLICE] = pooled;
    kept.features[(slot + image) * 400 + feature] = pooled;
  }
}

/* From slopes to gradients of the second convolution's outputs. Adds to one of 16 parts of its bias's gradient. */
DEVICE void outer2(Shared &s, int tid, float &bias_gradient) {
  if (tid >= 256 * IMAGES) return;
  const int image = tid / 256, channel = tid / 16 % 16;
  EACH(k, 2) {
    const int window = tid % 16 + 16 * k, feature = channel * 25 + window;
    if (window >= 25) break;
    float part[4], *corner = &s.slope2[image][channel * 100 + window / 5 * 20 + window % 5 * 2];
    EACH(j, 4) part[j] = s.inner1_parts[j][image][feature];
    const float gradient = (part[0] + part[1]) + (part[2] + part[3]);
    const float2 upper = load2(corner), lower = load2(corner + 10);
    store2(corner, upper.x * gradient, upper.y * gradient);
    store2(corner + 10, lower.x * gradient, lower.y * gradient);
    bias_gradient += gradient * ((upper.x + upper.y) + (lower.x + lower.y));
  }
}

/* A row of the gradient of `pooled1`, for two channels, added up over the four threads that have a part of it. Each
then turns one of the two rows of slopes of one channel into gradients of the first convolution's outputs. */
DEVICE void finish_row(float (&sum)[2][14], float *slopes, int split) {
  const unsigned quad = 15u << (threadIdx.x & 28);
  const int own = split % 2;
  float total[14], *row = slopes + own * 788 + split / 2 * 28;
  EACH(x, 14) {
    total[x] = (own ? sum[1][x] : sum[0][x]) + __shfl_xor_sync(quad, own ? sum[0][x] : sum[1][x], 1);
    sum[0][x] = sum[1][x] = 0;
  }
  EACH(x, 14) total[x] += __shfl_xor_sync(quad, total[x], 2);
  EACH(x, 7) {
    const float4 slope = load4(row + 4 * x);
    const float left = total[2 * x], right = total[2 * x + 1];
    store4(row + 4 * x, slope.x * left, slope.y * left, slope.z * right, slope.w * right);
  }
}

/* Back through the second convolution to the outputs of the first, in tiles of rows u and u + 10 of `pooled1`, two
channels. Row i of a kernel reaches row u from row u - i of the outputs, and row u + 10 from row u - i + 10, of which
just one is among the 10 rows: so all tiles are the same work. Four threads share a tile, each with a quarter of the
output channels. */
DEVICE void inner2(Shared &s, int tid) {
  if (tid >= 120 * IMAGES) return;
  const int split = tid % 4, image = tid / 4 % IMAGES, pair = tid / (4 * IMAGES) % 3, u = tid / (12 * IMAGES);
  float sum[2][14] = {};
  ROLLED for (int i = 4; i >= 0; --i) {
    if (i == u && u < 4) finish_row(sum, &s.slope1[image][2 * pair][(u + 10) * 56], split);
    const int row = u < i ? u - i + 10 : u - i;
    EACH(j, 4) {
      const int channel = 4 * j + split;
      float w[12], outer[10];
      load_by_4(w, &s.weight2_back[channel][(i * 3 + pair) * 12]);
      load_by_2(outer, &s.slope2[image][channel * 100 + row * 10]);
      EACH(x, 10) EACH(k, 5) sum[0][x + k] += outer[x] * w[k], sum[1][x + k] += outer[x] * w[5 + k];
    }
  }
  finish_row(sum, &s.slope1[image][2 * pair][u * 56], split);
}

/* The gradient of the second convolution's weight: a task is all 25 taps of an output and an input channel; in one
round of images, from half of the outputs, which divides the work more evenly. Tasks are numbered so that loads meet in
few banks. */
constexpr int HALVES = ONE_ROUND ? 2 : 1, TASKS2 = 96 * HALVES * IMAGES;
DEVICE int output_channel(int task) { return task % 8 + task / 16 % 2 * 8; }
DEVICE int input_channel(int task) { return task / 8 % 2 + task / 32 * 2; }

DEVICE void weight_gradient2(Shared &s, int task, float (&gradient)[25]) {
  const int pair = task % 96, image = task / 96 / HALVES;
  ROLLED for (int half = task / 96 % HALVES; half < 2; half += HALVES) {
    float outer[50];
    load_by_2(outer, &s.slope2[image][output_channel(pair) * 100 + half * 50]);
    EACH(r, 9) {
      float x[14];
      load_by_2(x, &s.pooled1[image][input_channel(pair)][pooled1_row(half * 5 + r)]);
      EACH(y, 5) if (r >= y && r - y < 5)
        EACH(z, 10) EACH(k, 5) gradient[(r - y) * 5 + k] += outer[y * 10 + z] * x[z + k];
    }
  }
}

/* Adds to the gradients of a channel's weight and, as the 26th, bias of the first convolution, from 7 x 4 outputs. */
DEVICE void weight_gradient1(Shared &s, int tid, float (&gradient)[26]) {
  if (tid >= 168 * IMAGES) return;
  const int column = tid % 7, row = tid / 7 % 4 * 7, image = tid / 28 % IMAGES, channel = tid / (28 * IMAGES);
  float outer[7][4];
  EACH(y, 7) {
    load_by_4(outer[y], &s.slope1[image][channel][(row + y) * 28 + 4 * column]);
    gradient[25] += (outer[y][0] + outer[y][1]) + (outer[y][2] + outer[y][3]);
  }
  EACH(r, 11) {
    float x[8];
    load_by_4(x, &s.images[image][(row + r) * 36 + 4 * column]);
    EACH(y, 7) if (r >= y && r - y < 5)
      EACH(z, 4) EACH(k, 5) gradient[(r - y) * 5 + k] += outer[y][z] * x[z + k];
  }
}

/* What threads have of the convolutions' gradients, to be added up over the block, in the order of threads. */
struct Sums {
  float weight2[HALVES * IMAGES][2400]; /* [task][tap] */
  float first[6 * 26][28 * IMAGES + 1]; /* one more than threads, against bank conflicts */
  float bias2[IMAGES][16][16];
};
static_assert(sizeof(Sums) <= SCRATCH_BYTES, "scratch is too small");

DEVICE void keep2(Shared &s, int task, const float (&gradient)[25]) {
  EACH(tap, 25) reinterpret_cast<Sums *>(scratch(s))->weight2[0][task * 25 + tap] = gradient[tap];
}

/* The sums over the block's images, to global memory; `keep2` has stored those of the second convolution's weight. */
DEVICE void add_up(Shared &s, int tid, const float (&first)[26], float bias2, float *to) {
  Sums &sums = *reinterpret_cast<Sums *>(scratch(s));
  if (tid < 168 * IMAGES) EACH(k, 26) sums.first[tid / (28 * IMAGES) * 26 + k][tid % (28 * IMAGES)] = first[k];
  if (tid < 256 * IMAGES) sums.bias2[tid / 256][tid / 16 % 16][tid % 16] = bias2;
  __syncthreads();
  for (int i = tid; i < 2400; i += THREADS) {
    float sum = sums.weight2[0][i];
    EACH(k, HALVES * IMAGES - 1) sum += sums.weight2[k + 1][i];
    to[WEIGHT_2 + (output_channel(i / 25) * 6 + input_channel(i / 25)) * 25 + i % 25] = sum;
  }
  float sum = 0;
  if (tid < 6 * 26) {
    UNROLL_BY(14) for (int k = 0; k < 28 * IMAGES; ++k) sum += sums.first[tid][k];
    to[tid % 26 < 25 ? tid / 26 * 25 + tid % 26 : BIAS_1 + tid / 26] = sum;
  } else if (tid >= 256 && tid < 272) {
    UNROLL_BY(8) for (int k = 0; k < 16 * IMAGES; ++k) sum += sums.bias2[k / 16][tid - 256][k % 16];
    to[BIAS_2 + tid - 256] = sum;
  } else if (tid >= 288 && tid < 290) {
    to[LOSS + tid - 288] = s.totals[0][tid - 288] + s.totals[1][tid - 288];
  }
}
