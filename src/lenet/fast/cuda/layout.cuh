/* What the kernel is given, and what lies where in the shared memory of a block.

The compiler's options say what is compiled:
CLUSTER       2: pairs of blocks divide the first linear layer's weights, and exchange values in each other's shared
              memory (compute capability 9.0 and newer); 1: each block reads these weights from the L2 cache
IMAGES        how many a block trains at a time, 1 or 2
ONE_ROUND     1: no step has more images than all blocks together train at a time
RELU          1: ReLU; 0: sigmoid
MAXIMUM       1: maximum pooling; 0: average pooling
OPTIMIZER     PLAIN_SGD, MOMENTUM_SGD or ADAM
SHARED_BYTES  how much shared memory a launch provides */

#pragma once

constexpr int THREADS = 512, WARPS = THREADS / 32;
constexpr int TOGETHER = IMAGES * CLUSTER; /* images that a cluster trains at a time */
constexpr int SLICE = 400 / CLUSTER;       /* how many of the first linear layer's inputs a block multiplies */

enum { CONV1, CONV2, FC1, FC2, FC3, LAYERS };
struct Tensors { float *weight[LAYERS], *bias[LAYERS]; };

struct Arguments {
  const unsigned char *images;   /* (N, 28, 28), bytes */
  const long long *labels;       /* (N), 0 to 9 */
  const long long *order;        /* which images, one step's after another's */
  const int *starts;             /* (steps + 1): where in the order each step begins; and its end */
  const float *coefficients;     /* (steps, 8): the optimizer's */
  Tensors parameters, gradients; /* gradients: of the last step */
  Tensors first, second;         /* the optimizer's state: momentum; or means of the gradients, and of their squares */
  float *workspace;              /* KEPT floats for each of `room` images, then PARTIAL for each block */
  float *losses;                 /* (steps): the mean loss of each */
  long long *correct;            /* (steps): right answers of each */
  unsigned *arrivals;            /* 96 zeros: counters of the grid's barriers */
  int steps, room;               /* room: images of the largest step, rounded up to a multiple of TOGETHER */
};

/* A block's sums over its images, in global memory: the convolutions' gradients, loss and right answers. */
enum { BIAS_1 = 150, WEIGHT_2 = 156, BIAS_2 = 2556, LOSS = 2572, CORRECT, SUMS, PARTIAL = 2576 };
enum { KEPT = 400 + 120 + 84 + 120 + 84 + 12 };

/* What is kept in global memory of all images of a step, until the gradients of the linear layers' weights are made. */
struct Workspace {
  float *features, *hidden1, *hidden2; /* (room, 400), (room, 120), (room, 84): what goes into the linear layers */
  float *outer1, *outer2, *outer3;     /* (room, 120), (room, 84), (room, 12): gradients of what comes out of them */
  float *partial;                      /* (blocks, PARTIAL) */

  DEVICE Workspace(float *at, int room)
      : features(at), hidden1(features + room * 400), hidden2(hidden1 + room * 120), outer1(hidden2 + room * 84),
        outer2(outer1 + room * 120), outer3(outer2 + room * 84), partial(outer3 + room * 12) {}
};

/* Of the images at hand. Rows are padded where a warp's loads would otherwise meet in the same banks.

`slope` is the derivative of a pooled value by an output of the convolution: of activation and pooling together. On the
way back, the pooled value's gradient times the slope takes its place: the gradient of the convolution's output. */
struct alignas(16) Activations {
  float slope1[IMAGES][6][788];    /* [28][28] */
  float slope2[IMAGES][1616];      /* [16][10][10]; before the activation, a third of each sum */
  float pooled1[IMAGES][6][294];   /* [14][14], where `pooled1_row` says */
  float features[TOGETHER][SLICE]; /* the cluster's images, this block's slice of each one's 400 */
  union {
    float thirds[2][IMAGES][1600]; /* the other thirds of the second convolution's sums */
    struct {
      float hidden1_parts[CLUSTER * 4][IMAGES][120]; /* partial sums, from all blocks of the cluster */
      float outer1[120][TOGETHER];                   /* gradients of the first linear layer's outputs: the cluster's */
      float inner1_parts[4][IMAGES][400];            /* partial sums of the gradients of its inputs */
      float hidden1[IMAGES][120], hidden2[IMAGES][84], outer2[IMAGES][84], logits[IMAGES][12];
    };
  };
  float weight2[16][6][28];      /* the second convolution's, scaled, for the way forward */
  float weight2_back[16][196];   /* for the way back: [5 rows][3 pairs of inputs][2 inputs][5], a pair padded to 12 */
};

struct Shared : Activations {
  float images[IMAGES][32 * 36]; /* from 0 to 1; 28 x 28 with a border of 2, in rows of 36 */
  float weight1[6][28], bias1[6], bias2[18], fc3[840], fc_bias[216]; /* fc_bias: of all three linear layers */
  float totals[2][2];            /* of each image: loss, and right answers */
  int labels[4];
#if CLUSTER > 1
  float fc1[120][SLICE + 4];
#endif
};
static_assert(sizeof(Shared) <= SHARED_BYTES, "a launch provides less shared memory");

/* Where sums are made when the images are done with: in the place of the first linear layer's weights, which each step
loads anew; without them there, in that of the activations. */
#if CLUSTER > 1
DEVICE float *scratch(Shared &s) { return &s.fc1[0][0]; }
constexpr int SCRATCH_BYTES = sizeof(Shared::fc1);
#else
DEVICE float *scratch(Shared &s) { return &s.slope1[0][0][0]; }
constexpr int SCRATCH_BYTES = sizeof(Activations);
static_assert(!ONE_ROUND, "the second convolution's sums would overwrite what is still needed");
#endif

/* Even and odd rows lie so that a warp's loads by twos meet in few banks. */
DEVICE int pooled1_row(int y) { return y / 2 * 42 + y % 2 * 14; }
