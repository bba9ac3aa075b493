/* Loads of several numbers at once, activations, and 2 x 2 pooling. */

#pragma once

DEVICE float4 load4(const float *from) { return *reinterpret_cast<const float4 *>(from); }
DEVICE float2 load2(const float *from) { return *reinterpret_cast<const float2 *>(from); }
DEVICE void store4(float *to, float a, float b, float c, float d) { *reinterpret_cast<float4 *>(to) = {a, b, c, d}; }
DEVICE void store2(float *to, float a, float b) { *reinterpret_cast<float2 *>(to) = {a, b}; }
DEVICE float dot(float4 a, float4 b) { return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w; }

/* COUNT numbers, by fours or by twos: their address must be a multiple of 16 or 8. */
template <int COUNT> DEVICE void load_by_4(float (&to)[COUNT], const float *from) {
  EACH(i, COUNT / 4) {
    const float4 four = load4(from + 4 * i);
    to[4 * i] = four.x, to[4 * i + 1] = four.y, to[4 * i + 2] = four.z, to[4 * i + 3] = four.w;
  }
}
template <int COUNT> DEVICE void load_by_2(float (&to)[COUNT], const float *from) {
  EACH(i, COUNT / 2) {
    const float2 two = load2(from + 2 * i);
    to[2 * i] = two.x, to[2 * i + 1] = two.y;
  }
}

/* Sigmoid is 1 / (1 + 2^(-x log2 e)). A convolution's parameters are multiplied by -log2 e once, when they are loaded,
and not each of its outputs; so `activation` expects scaled sums. */
constexpr float LOG2_E = 1.44269504f;
DEVICE float scaled(float x) { return RELU ? x : -LOG2_E * x; }

/* Here and below, comparisons are such that what is not a number stays so, as in PyTorch. */
DEVICE float activation(float scaled_sum) {
  if (RELU) return scaled_sum <= 0.f ? 0.f : scaled_sum;
  return reciprocal(1.f + power_of_2(scaled_sum));
}

/* The derivative of an activation, from its value, times a factor. */
DEVICE float derivative(float value, float factor = 1.f) {
  if (RELU) return value <= 0.f ? 0.f : factor;
  return (factor - factor * value) * value;
}

/* From a window of a convolution's scaled outputs, row by row, to its pooled activation; the derivatives of that by the
outputs take their place. Of equal maxima, the first has all of it. */
DEVICE float pool(float &a, float &b, float &c, float &d) {
  a = activation(a), b = activation(b), c = activation(c), d = activation(d);
  if (MAXIMUM) {
    float largest = a;
    int winner = 0;
    if (b > largest || b != b) largest = b, winner = 1;
    if (c > largest || c != c) largest = c, winner = 2;
    if (d > largest || d != d) largest = d, winner = 3;
    const float slope = derivative(largest);
    a = winner == 0 ? slope : 0.f, b = winner == 1 ? slope : 0.f;
    c = winner == 2 ? slope : 0.f, d = winner == 3 ? slope : 0.f;
    return largest;
  }
  const float mean = 0.25f * ((a + b) + (c + d));
  a = derivative(a, 0.25f), b = derivative(b, 0.25f), c = derivative(c, 0.25f), d = derivative(d, 0.25f);
  return mean;
}
