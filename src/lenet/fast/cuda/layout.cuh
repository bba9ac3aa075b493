/* What the kernel is given, and what lies where in the shared memory of a block.

The compiler defines what is compiled:
CLUSTER    2: pairs of blocks divide the first linear layer's weights, and exchange values through each other's shared
           memory (compute capability 9.0 and newer). 1: a block needs no other, and reads these weights from the L2 cache.
IMAGES     how many images a block trains at a time, 1 or 2
ONE_ROUND  1: no step has more images than all blocks together train at a time
RELU, MAXIMUM   1: activations are ReLU and not sigmoid; poolings take the maximum and not the average
OPTIMIZER  PLAIN_SGD, MOMENTUM_SGD or ADAM (update.cuh)
SHARED_BYTES    how much shared memory a launch provides */

#pragma once

constexpr int THREADS = 512, WARPS = THREADS / 32;
constexpr int TOGETHER = IMAGES * CLUSTER;  /* images that a cluster trains at a time */
constexpr int SLICE = 400 / CLUSTER;        /* how many of the first linear layer's inputs a block multiplies */

enum { CONV1, CONV2, FC1, FC2, FC3, LAYERS };

struct Tensors {
  float *weight[LAYERS], *bias[LAYERS];
};

struct Arguments {
  const unsigned char *images;   /* (N, 28, 28), bytes */
  const long long *labels;       /* (N), 0 to 9 */
  const long long *order;        /* which images, one step's after another's */
  const int *starts;             /* (steps + 1): step i has the images at order[starts[i]] to order[starts[i + 1] - 1] */
  const float *coefficients;     /* (steps, 8): the optimizer's (update.cuh) */
  Tensors parameters, gradients; /* the gradients are those of the last step */
  Tensors first, second;         /* the optimizer's state: momentum; or means of the gradients, and of their squares */
  float *workspace;              /* KEPT floats for each of `room` images, then PARTIAL for each block; see Workspace */
  float *losses;                 /* (steps): mean loss of each */
  long long *correct;            /* (steps): right answers of each */
  unsigned *arrivals;            /* 96 zeros: counters of the grid's barriers */
  int steps, room;               /* room: images of the largest step, rounded up to a multiple of TOGETHER */
};

/* A block's sums over its images, in global memory: gradients of the convolutions, the losses, and the right answers. */
enum { BIAS_1 = 150, WEIGHT_2 = 156, BIAS_2 = 2556, LOSS = 2572, CORRECT, SUMS, PARTIAL = 2576 };

enum { KEPT = 400 + 120 + 84 + 120 + 84 + 12 };

/* What is kept in global memory of all images of a step, until the gradients of the linear layers' weights are formed. */
struct Workspace {
  float *features, *hidden1, *hidden2; /* (room, 400), (room, 120), (room, 84): what went into the linear layers */
  float *outer1, *outer2, *outer3;     /* (room, 120), (room, 84), (room, 12): gradients of what came out of them */
  float *partial;                      /* (blocks, PARTIAL) */
};

DEVICE Workspace workspace(const Arguments &a) {
  float *at = a.workspace;
  const int room = a.room;
  return {at,
          at + room * 400,
          at + room * (400 + 120),
          at + room * (400 + 120 + 84),
          at + room * (400 + 120 + 84 + 120),
          at + room * (400 + 120 + 84 + 120 + 84),
          at + room * KEPT};
}

/* Of the images at hand. Rows are padded where warps would otherwise meet in the same banks of shared memory.

`slope` is the derivative of a pooled value by a convolution's output, that is, of activation and pooling together. On the
way back it is multiplied by the pooled value's gradient, and so becomes the gradient of the convolution's output. */
struct alignas(16) Activations {
  float slope1[IMAGES][6][788];       /* [28][28] */
  float slope2[IMAGES][1616];         /* [16][10][10]; before the activation, a third of each sum */
  float pooled1[IMAGES][6][294];      /* [14][14]; where a row begins, says pooled1_row */
  float features[TOGETHER][SLICE];    /* the cluster's images, this block's slice of each one's 400 */
  union {
    float thirds[2][IMAGES][1600];    /* the other thirds of the second convolution's sums */
    struct {
      float hidden1_parts[CLUSTER * 4][IMAGES][120]; /* partial sums, from all blocks of the cluster */
      float outer1[120][TOGETHER];                   /* gradients of the first linear layer's outputs; the cluster's */
      float inner1_parts[4][IMAGES][400];            /* partial sums of the gradients of its inputs */
      float hidden1[IMAGES][120], hidden2[IMAGES][84], outer2[IMAGES][84], logits[IMAGES][12];
    };
  };
  float weight2[16][6][28];           /* the second convolution's, for the way forward */
  float weight2_back[16][196];        /* the same for the way back: [5 rows][3 pairs of inputs][2 inputs][5], and 2 */
};

struct Shared : Activations {
  float images[IMAGES][32 * 36];      /* from 0 to 1; 28 x 28 with a border of 2, in rows of 36 */
  float weight1[6][28], bias1[6], bias2[18];
  float fc3[840], fc_bias[216];       /* biases of all three linear layers */
  float totals[2][2];                 /* of each image: loss, and whether the answer is right */
  int labels[4];
#if CLUSTER > 1
  float fc1[120][SLICE + 4];
#endif
};

/* What sums are formed in, when the block's images are done with: where the first linear layer's weights were, which are
loaded for each step, or else where the activations were. */
DEVICE float *scratch(Shared &s) {
#if CLUSTER > 1
  return &s.fc1[0][0];
#else
  return &s.slope1[0][0][0];
#endif
}
#if CLUSTER > 1
constexpr int SCRATCH = sizeof(Shared::fc1) / sizeof(float);
#else
constexpr int SCRATCH = sizeof(Activations) / sizeof(float);
#endif

static_assert(sizeof(Shared) <= SHARED_BYTES, "a launch provides less shared memory");
static_assert(CLUSTER > 1 || !ONE_ROUND, "without a cluster, scratch is not free before the last image is done with");

/* Even and odd rows at distances that keep a warp's loads of pairs apart. */
DEVICE int pooled1_row(int y) { return y / 2 * 42 + y % 2 * 14; }
