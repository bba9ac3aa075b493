/* Images side by side: a vector register as a number of each of several images.

LANES images form a group, and a `lanes` holds the same number of each, so that one instruction works on all of them. No
image's border and no odd number of channels then leaves a part of a register empty, and code reads as if it were for
one image, with `lanes` in the place of numbers.

What makes it fast is that innermost loops keep their sums in registers: a tile of results is computed at once, as large
as the registers hold, and each number that is loaded is used for several of them. Loops over a tile are unrolled, so
that its sums have names which the compiler can give to registers.

Arrays are dense, the last index running fastest; their shapes stand beside them. */

#pragma once

#include <stdint.h>
#include <string.h>

#ifndef LANES
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#endif

/* The size of a loop's tile: `many` where the processor has 32 vector registers, `few` where it has 16. */
#if defined(__AVX512F__) || defined(__aarch64__)
#define OF_REGISTERS(many, few) (many)
#else
#define OF_REGISTERS(many, few) (few)
#endif

#define UNROLL _Pragma("GCC unroll 32")
#define INLINE static inline __attribute__((always_inline))

typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef float four __attribute__((vector_size(16), may_alias));
typedef int32_t bits __attribute__((vector_size(4 * LANES)));

enum { NONE, SIGMOID, RELU }; /* activations */
enum { AVERAGE, MAXIMUM };    /* poolings */

/* The same number for each image; an operation of a number and a vector is one on all of its elements. */
INLINE lanes broadcast(float value) { return value - (lanes){0}; }

INLINE lanes where(bits condition, lanes yes, lanes no) {
  return (lanes)((condition & (bits)yes) | (~condition & (bits)no));
}

/* The larger of two; not a number if one of them is not. */
INLINE lanes larger(lanes a, lanes b) { return where((b > a) | (b != b), b, a); }

/* The sum over the images of a group: by fours first, which is an instruction for each four. */
INLINE float total(lanes values) {
  const four *parts = (const four *)&values;
  four sum = parts[0];
  UNROLL for (int i = 1; i < LANES / 4; i++) sum += parts[i];
  return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

/* exp(-x), with the ends of what a float can hold for an x beyond 87 in size; not a number stays not a number.

With n = -x / ln 2, rounded, and r = -x - n ln 2, it is 2^n e^r: n becomes the exponent of a float, and e^r, where
|r| <= ln 2 / 2, is the polynomial of degree 5 with the smallest relative error there (7.5e-8), found by Remez' algorithm.
ln 2 comes in two parts, the first of so few digits that its product with n is exact (Cody and Waite, 1980). */
INLINE lanes exponential_of_minus(lanes x) {
  x = where(x < -87.f, broadcast(-87.f), where(x > 87.f, broadcast(87.f), x));
  /* Adding 1.5 * 2^23 leaves no bits for a fraction; the last bits are then n + 127, as an exponent is stored. */
  const float round = 12582912.f + 127.f;
  lanes shifted = x * -1.44269504f + round;
  lanes n = shifted - round;
  lanes r = n * 2.12194440e-4f - (n * 0.693359375f + x);
  lanes power = 8.29765509e-3f * r + 4.1915382e-2f;
  power = power * r + 1.66675747e-1f;
  power = power * r + 4.99988949e-1f;
  power = power * r + 9.99999692e-1f;
  power = power * r + 1.00000007f;
  return power * (lanes)((bits)shifted << 23);
}

/* In place, a few numbers at a time, which need not wait for each other. Sigmoid to four units in the last place. */
INLINE void activate(int activation, lanes *values, const int count) {
  if (activation == SIGMOID)
    UNROLL for (int i = 0; i < count; i++) values[i] = 1.f / (1.f + exponential_of_minus(values[i]));
  if (activation == RELU)
    UNROLL for (int i = 0; i < count; i++) values[i] = where(values[i] < 0.f, broadcast(0.f), values[i]);
}

/* From the gradient of an activation's output, and the output, to the gradient of its input. */
INLINE lanes activation_gradient(int activation, lanes gradient, lanes output) {
  if (activation == SIGMOID) return gradient * output * (1.f - output);
  if (activation == RELU) return where(output > 0.f, gradient, broadcast(0.f));
  return gradient;
}
