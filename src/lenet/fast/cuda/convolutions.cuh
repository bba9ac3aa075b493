/* The two convolutions with activation and pooling, forward and backward, of a block's images.

A warp's multiply-add takes one of four issue slots in a clock of a multiprocessor, and a number that a warp loads from
shared memory about a whole clock, whether all lanes read the same or not. So each thread computes a tile of results from
numbers in its registers, and tiles are as large as registers allow: 2.5 to 7 multiply-adds for each number. */

#pragma once

/* The first block: tiles of 2 x 4 outputs, that is two windows, of three channels one after another.

These are 196 tasks an image. Full warps take most; of the last 4 or 8 tasks, each channel is a task of its own, or one warp
would still compute three when the others are done. */
DEVICE void forward1(Shared &s, int tid) {
  constexpr int TASKS = 196 * IMAGES, IN_FULL_WARPS = TASKS / 32 * 32;
  int task = tid, channel = task / (TASKS / 2) * 3, end = channel + 3;
  if (tid >= IN_FULL_WARPS) {
    task = IN_FULL_WARPS + tid % 32;
    channel = 3 + (tid - IN_FULL_WARPS) / 32;
    end = task < TASKS ? min(channel + 1, 6) : 0;
  }
  const int image = task / 98 % IMAGES, row = task % 98 / 7, column = task % 7;
  if (channel >= end) return;
  float x[6][8];
  UNROLL for (int y = 0; y < 6; ++y) load_by_4(x[y], &s.images[image][(2 * row + y) * 36 + 4 * column]);
  ROLLED for (; channel < end; ++channel) {
    float weight[28], sum[2][4];
    load_by_4(weight, s.weight1[channel]);
    UNROLL for (int k = 0; k < 8; ++k) sum[k / 4][k % 4] = s.bias1[channel];
    UNROLL for (int tap = 0; tap < 25; ++tap)
      UNROLL for (int y = 0; y < 2; ++y)
        UNROLL for (int z = 0; z < 4; ++z) sum[y][z] += weight[tap] * x[y + tap / 5][z + tap % 5];
    const float left = pool(sum[0][0], sum[0][1], sum[1][0], sum[1][1]);
    const float right = pool(sum[0][2], sum[0][3], sum[1][2], sum[1][3]);
    UNROLL for (int y = 0; y < 2; ++y)
      store4(&s.slope1[image][channel][(2 * row + y) * 28 + 4 * column], sum[y][0], sum[y][1], sum[y][2], sum[y][3]);
    store2(&s.pooled1[image][channel][pooled1_row(row) + 2 * column], left, right);
  }
}

/* The second convolution's sums: tiles of 2 rows of 10 outputs, over two of the six input channels. */
DEVICE void sums2(Shared &s, int tid) {
  if (tid >= 240 * IMAGES) return;
  const int third = tid / (80 * IMAGES), image = tid / 80 % IMAGES, channel = tid % 80 / 5, row = tid % 5;
  float sum[2][10] = {};
  ROLLED for (int in = 2 * third; in < 2 * third + 2; ++in) {
    float weight[28];
    load_by_4(weight, s.weight2[channel][in]);
    UNROLL for (int y = 0; y < 6; ++y) {
      float x[14];
      load_by_2(x, &s.pooled1[image][in][row * 42 + pooled1_row(y)]);
      UNROLL for (int k = 0; k < 5; ++k)
        UNROLL for (int z = 0; z < 10; ++z) {
          if (y < 5) sum[0][z] += weight[y * 5 + k] * x[z + k];
          if (y > 0) sum[1][z] += weight[y * 5 - 5 + k] * x[z + k];
        }
    }
  }
  float *to = (third ? s.thirds[third - 1][image] : s.slope2[image]) + channel * 100 + row * 20;
  UNROLL for (int k = 0; k < 20; k += 4)
    store4(to + k, sum[k / 10][k % 10], sum[(k + 1) / 10][(k + 1) % 10], sum[(k + 2) / 10][(k + 2) % 10],
           sum[(k + 3) / 10][(k + 3) % 10]);
}

/* Then its activation and pooling. The pooled values go to the block of the cluster that multiplies them, and to global
memory for the gradient of the weights; `slot` is where this block's first image is there. */
DEVICE void pool2(Shared &s, int tid, int rank, int slot, const Workspace &kept) {
  UNROLL for (int task = tid; task < 400 * IMAGES; task += THREADS) {
    const int image = task / 400, feature = task % 400, channel = feature / 25;
    const int corner = channel * 100 + feature % 25 / 5 * 20 + feature % 5 * 2;
    float2 row[2];
    UNROLL for (int y = 0; y < 2; ++y) {
      const float2 a = load2(&s.slope2[image][corner + 10 * y]), b = load2(&s.thirds[0][image][corner + 10 * y]);
      const float2 c = load2(&s.thirds[1][image][corner + 10 * y]);
      row[y] = {s.bias2[channel] + (a.x + b.x + c.x), s.bias2[channel] + (a.y + b.y + c.y)};
    }
    const float pooled = pool(row[0].x, row[0].y, row[1].x, row[1].y);
    UNROLL for (int y = 0; y < 2; ++y) store2(&s.slope2[image][corner + 10 * y], row[y].x, row[y].y);
    in_block(s, feature / SLICE).features[rank * IMAGES + image][feature % SLICE] = pooled;
    kept.features[(slot + image) * 400 + feature] = pooled;
  }
}

/* From slopes to gradients of the second convolution's outputs; adds to one of 16 parts of its bias's gradient. */
DEVICE void outer2(Shared &s, int tid, float &bias_gradient) {
  if (tid >= 256 * IMAGES) return;
  const int image = tid / 256, channel = tid / 16 % 16;
  UNROLL for (int window = tid % 16; window < 25; window += 16) {
    const float(&parts)[4][IMAGES][400] = s.inner1_parts;
    const int feature = channel * 25 + window;
    const float gradient = (parts[0][image][feature] + parts[1][image][feature]) +
                           (parts[2][image][feature] + parts[3][image][feature]);
    float *corner = &s.slope2[image][channel * 100 + window / 5 * 20 + window % 5 * 2];
    const float2 upper = load2(corner), lower = load2(corner + 10);
    store2(corner, upper.x * gradient, upper.y * gradient);
    store2(corner + 10, lower.x * gradient, lower.y * gradient);
    bias_gradient += gradient * ((upper.x + upper.y) + (lower.x + lower.y));
  }
}

/* A row of the gradient of `pooled1`, for two channels, added up over the four threads that each have a part of it. Each
then turns one row of one channel's slopes into gradients of the first convolution's outputs: `split` says which. */
DEVICE void finish_row(float (&sum)[2][14], float *slopes, int split) {
  const unsigned quad = 15u << (threadIdx.x & 28);
  const int own = split & 1;
  float gradient[14];
  UNROLL for (int x = 0; x < 14; ++x) {
    gradient[x] = (own ? sum[1][x] : sum[0][x]) + __shfl_xor_sync(quad, own ? sum[0][x] : sum[1][x], 1);
    sum[0][x] = sum[1][x] = 0;
  }
  UNROLL for (int x = 0; x < 14; ++x) gradient[x] += __shfl_xor_sync(quad, gradient[x], 2);
  float *row = slopes + own * 788 + split / 2 * 28;
  UNROLL for (int x = 0; x < 14; x += 2) {
    const float4 slope = load4(row + 2 * x);
    store4(row + 2 * x, slope.x * gradient[x], slope.y * gradient[x], slope.z * gradient[x + 1],
           slope.w * gradient[x + 1]);
  }
}

/* Back through the second convolution to the outputs of the first: tiles of rows u and u + 10 of `pooled1`, two channels.
Its 14 rows are then the same work for each u: as row i of the kernel reaches row u from row u - i of the 10 outputs, and
row u + 10 from row u + 10 - i, only one of the two exists. Four threads share a tile, each with a quarter of the outputs. */
DEVICE void inner2(Shared &s, int tid) {
  if (tid >= 120 * IMAGES) return;
  const int split = tid % 4, image = tid / 4 % IMAGES, pair = tid / (4 * IMAGES) % 3, u = tid / (12 * IMAGES);
  float sum[2][14] = {};
  ROLLED for (int i = 4; i >= 0; --i) {
    if (i == u && u < 4) finish_row(sum, &s.slope1[image][2 * pair][(u + 10) * 56], split);
    const int row = u < i ? u - i + 10 : u - i;
    UNROLL for (int j = 0; j < 4; ++j) {
      float weight[12], outer[10];
      load_by_4(weight, &s.weight2_back[4 * j + split][(i * 3 + pair) * 12]);
      load_by_2(outer, &s.slope2[image][(4 * j + split) * 100 + row * 10]);
      UNROLL for (int x = 0; x < 10; ++x)
        UNROLL for (int k = 0; k < 5; ++k) {
          sum[0][x + k] += outer[x] * weight[k];
          sum[1][x + k] += outer[x] * weight[5 + k];
        }
    }
  }
  finish_row(sum, &s.slope1[image][2 * pair][u * 56], split);
}

/* The gradient of the second convolution's weight: all 25 taps of one output and one input channel are a task, whose number
is arranged so that a warp's loads meet in few banks. With ONE_ROUND, of one half of the outputs: tasks are more even then. */
constexpr int HALVES = ONE_ROUND ? 2 : 1, TASKS2 = 96 * HALVES * IMAGES;
DEVICE int task2_output(int task) { return task % 8 + task / 16 % 2 * 8; }
DEVICE int task2_input(int task) { return task / 8 % 2 + task / 32 * 2; }

DEVICE void weight_gradient2(Shared &s, int task, float (&gradient)[25]) {
  const int pair = task % 96, image = task / 96 / HALVES;
  ROLLED for (int half = task / 96 % HALVES; half < 2; half += HALVES) {
    float outer[50];
    load_by_2(outer, &s.slope2[image][task2_output(pair) * 100 + half * 50]);
    UNROLL for (int r = 0; r < 9; ++r) {
      float x[14];
      load_by_2(x, &s.pooled1[image][task2_input(pair)][pooled1_row(half * 5 + r)]);
      UNROLL for (int y = 0; y < 5; ++y)
        if (r >= y && r - y < 5)
          UNROLL for (int z = 0; z < 10; ++z)
            UNROLL for (int k = 0; k < 5; ++k) gradient[(r - y) * 5 + k] += outer[y * 10 + z] * x[z + k];
    }
  }
}

/* Adds to the gradients of the first convolution's weight and, as the 26th, its bias: of one channel, from 7 x 4 outputs. */
DEVICE void weight_gradient1(Shared &s, int tid, float (&gradient)[26]) {
  if (tid >= 168 * IMAGES) return;
  const int column = tid % 7, row = tid / 7 % 4 * 7, image = tid / 28 % IMAGES, channel = tid / (28 * IMAGES);
  float outer[7][4];
  UNROLL for (int y = 0; y < 7; ++y) {
    load_by_4(outer[y], &s.slope1[image][channel][(row + y) * 28 + 4 * column]);
    gradient[25] += (outer[y][0] + outer[y][1]) + (outer[y][2] + outer[y][3]);
  }
  UNROLL for (int r = 0; r < 11; ++r) {
    float x[8];
    load_by_4(x, &s.images[image][(row + r) * 36 + 4 * column]);
    UNROLL for (int y = 0; y < 7; ++y)
      if (r >= y && r - y < 5)
        UNROLL for (int z = 0; z < 4; ++z)
          UNROLL for (int k = 0; k < 5; ++k) gradient[(r - y) * 5 + k] += outer[y][z] * x[z + k];
  }
}

/* What threads have of the convolutions' gradients, side by side in scratch, to be added up over the block. */
struct Sums {
  float weight2[HALVES * IMAGES][2400]; /* [task][tap] */
  float first[6 * 26][28 * IMAGES + 1]; /* one more than threads, against bank conflicts */
  float bias2[IMAGES][16][16];
};
static_assert(sizeof(Sums) <= SCRATCH * sizeof(float), "scratch is too small");

DEVICE void keep2(Shared &s, int task, const float (&gradient)[25]) {
  float *to = reinterpret_cast<Sums *>(scratch(s))->weight2[0] + task * 25;
  UNROLL for (int tap = 0; tap < 25; ++tap) to[tap] = gradient[tap];
}

/* The block's sums over its images, to global memory; in the order of threads, and so always the same. */
DEVICE void add_up(Shared &s, int tid, const float (&first)[26], float bias2, float *partial) {
  Sums &sums = *reinterpret_cast<Sums *>(scratch(s));
  if (tid < 168 * IMAGES)
    UNROLL for (int k = 0; k < 26; ++k) sums.first[tid / (28 * IMAGES) * 26 + k][tid % (28 * IMAGES)] = first[k];
  if (tid < 256 * IMAGES) (&sums.bias2[0][0][0])[tid] = bias2;
  __syncthreads();
  for (int j = tid; j < 2400; j += THREADS) {
    const int task = j / 25;
    float sum = sums.weight2[0][j];
    UNROLL for (int k = 1; k < HALVES * IMAGES; ++k) sum += sums.weight2[k][j];
    partial[WEIGHT_2 + (task2_output(task) * 6 + task2_input(task)) * 25 + j % 25] = sum;
  }
  if (tid < 6 * 26) {
    float sum = 0;
    UNROLL_BY(14) for (int k = 0; k < 28 * IMAGES; ++k) sum += sums.first[tid][k];
    partial[tid % 26 < 25 ? tid / 26 * 25 + tid % 26 : BIAS_1 + tid / 26] = sum;
  } else if (tid >= 256 && tid < 272) {
    float sum = 0;
    UNROLL_BY(8) for (int k = 0; k < 16 * IMAGES; ++k) sum += sums.bias2[k / 16][tid - 256][k % 16];
    partial[BIAS_2 + tid - 256] = sum;
  } else if (tid >= 288 && tid < 290) {
    float sum = s.totals[0][tid - 288];
    if (IMAGES > 1) sum += s.totals[1][tid - 288];
    partial[LOSS + tid - 288] = sum;
  }
}
