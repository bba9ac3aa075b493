/* Runs the CUDA kernel on the CPU: one fiber a thread, switched at barriers, shuffles and polls only.

It shows wrong indices, missing barriers, and sums whose order is not fixed: threads can be run in several orders,
which must all give the same bits; shared memory starts as NaN; asynchronous copies arrive only when they are waited
for; addresses of vectors are checked. What it cannot show is what depends on the GPU's memory model, or on its
approximate instructions. */

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

using std::min;

#define DEVICE inline
#define EACH(i, count) for (int i = 0; i < (count); ++i)
#define UNROLL_BY(count)
#define ROLLED
#define __global__
#define __grid_constant__
#define __launch_bounds__(...)
#define CLUSTER_DIMENSIONS

/* One library has all kinds of networks and optimizers: these are macros only on the GPU. */
static int RELU, MAXIMUM, OPTIMIZER;

static void check(const void *address, size_t size) {
  if ((uintptr_t)address % size) printf("an address is no multiple of %zu\n", size), abort();
}

struct alignas(8) float2 {
  float x, y;
  float2() = default;
  float2(float x, float y) : x(x), y(y) {}
  float2(const float2 &from) { check(&from, 8), x = from.x, y = from.y; }
  float2 &operator=(const float2 &from) { return check(&from, 8), check(this, 8), x = from.x, y = from.y, *this; }
};
struct alignas(16) float4 {
  float x, y, z, w;
  float4() = default;
  float4(float x, float y, float z, float w) : x(x), y(y), z(z), w(w) {}
  float4(const float4 &from) { *this = from; }
  float4 &operator=(const float4 &from) { return check(&from, 16), check(this, 16), memmove(this, &from, 16), *this; }
};
struct alignas(16) uint4 { unsigned x, y, z, w; };

struct Meeting { long arrived = 0, times = 0; };
struct Block { int id; Meeting meeting, *cluster; Block *blocks; char *shared; struct Fiber *fibers; };
struct Copy { float *to; const float *from; };
struct Fiber {
  ucontext_t context;
  Block *block;
  int tid;
  bool done = false, polls = false;
  const long *watched = nullptr; /* it cannot go on before this number is `until` */
  long until = 0, epoch = 0, sent = 0;
  float ring[64];
  std::vector<Copy> copies;
};
static Fiber *me;
static ucontext_t scheduler;
static int threads_of_a_block, blocks_of_the_grid, blocks_of_a_cluster;

struct Index { int x; };
#define threadIdx (Index{me->tid})
#define blockIdx (Index{me->block->id})
#define gridDim (Index{blocks_of_the_grid})

static void pause_until(const long *number, long value) {
  me->watched = number, me->until = value;
  swapcontext(&me->context, &scheduler);
}

static void meet(Meeting &meeting, int members) {
  me->sent = ++me->epoch * 1024; /* so that threads count their shuffles from here */
  const long next = meeting.times + 1;
  if (++meeting.arrived == members) meeting.arrived = 0, meeting.times = next;
  else pause_until(&meeting.times, next);
}
static void __syncthreads() { meet(me->block->meeting, threads_of_a_block); }
static void cluster_barrier() { meet(*me->block->cluster, threads_of_a_block * blocks_of_a_cluster); }
static int cluster_rank() { return me->block->id % blocks_of_a_cluster; }

static float __shfl_xor_sync(unsigned mask, float value, int distance) {
  Fiber &other = me->block->fibers[me->tid ^ distance];
  if (!(mask >> me->tid % 32 & mask >> other.tid % 32 & 1)) puts("a shuffle with a thread outside its mask"), abort();
  const long turn = me->sent++;
  me->ring[turn % 64] = value;
  if (other.sent <= turn) pause_until(&other.sent, turn + 1);
  if (other.sent / 1024 == turn / 1024 && other.sent > turn + 64) puts("shuffles that do not belong together"), abort();
  return other.ring[turn % 64];
}

template <class Shared>
Shared &shared_memory() { return *reinterpret_cast<Shared *>(me->block->shared); }

template <class Place>
Place &in_block(Place &place, int rank) {
  const long offset = (char *)&place - me->block->shared;
  return *reinterpret_cast<Place *>(me->block->blocks[rank].shared + offset);
}

static void start_copy(float *to, const float *from) {
  check(to, 16), check(from, 16);
  me->copies.push_back({to, from});
}
static void copies_done() {
  for (const Copy &copy : me->copies) memcpy(copy.to, copy.from, 16);
  me->copies.clear();
}
static void add_one(unsigned *counter) { ++*counter; }
static unsigned read(const unsigned *counter) {
  static const long always = 0;
  me->polls = true, pause_until(&always, 0), me->polls = false;
  return *(const volatile unsigned *)counter;
}
static void fence() {}
static float power_of_2(float x) { return exp2f(x); }
static float reciprocal(float x) { return 1 / x; }
static int opaque(int i) { return i; }
template <class Type>
Type __ldg(const Type *from) { return check(from, sizeof(Type)), *from; }
template <class Type>
Type __ldcg(const Type *from) { return check(from, sizeof(Type)), *from; }

static void (*body)();
static void run_fiber() {
  body(), me->done = true;
  swapcontext(&me->context, &scheduler);
}

/* Threads run in rising (0), falling (1) or shuffled order (2). Returns whether all came to their end. */
static bool run(int blocks, int cluster, int threads, size_t shared_bytes, int order, void (*kernel)()) {
  body = kernel, threads_of_a_block = threads, blocks_of_the_grid = blocks, blocks_of_a_cluster = cluster;
  const size_t count = (size_t)blocks * threads, stack = 1 << 16;
  std::vector<Meeting> clusters(blocks / cluster);
  std::vector<Block> grid(blocks);
  std::vector<Fiber> fibers(count);
  const std::unique_ptr<char[]> stacks(new char[count * stack]);
  std::vector<std::unique_ptr<float4[]>> memory;
  for (int id = 0; id < blocks; ++id) {
    memory.emplace_back(new float4[shared_bytes / 16 + 1]);
    std::fill_n((float *)memory[id].get(), shared_bytes / 16 * 4 + 4, NAN);
    grid[id] = {id, {}, &clusters[id / cluster], &grid[id / cluster * cluster], (char *)memory[id].get(),
                &fibers[(size_t)id * threads]};
  }
  std::vector<int> turns(count);
  for (size_t i = 0; i < count; ++i) {
    turns[i] = order == 1 ? count - 1 - i : i;
    fibers[i].block = &grid[i / threads], fibers[i].tid = i % threads;
    getcontext(&fibers[i].context);
    fibers[i].context.uc_stack.ss_sp = &stacks[i * stack], fibers[i].context.uc_stack.ss_size = stack;
    makecontext(&fibers[i].context, run_fiber, 0);
  }
  unsigned random = 1;
  for (size_t left = count, idle = 0; left; ++idle) {
    if (idle > 2) return false; /* all that are left wait for each other */
    if (order == 2)
      for (size_t i = count - 1; i > 0; --i)
        std::swap(turns[i], turns[(random = random * 1664525 + 1013904223) % (i + 1)]);
    for (int turn : turns) {
      Fiber &fiber = fibers[turn];
      if (fiber.done || (fiber.watched && *fiber.watched < fiber.until)) continue;
      if (!fiber.polls) idle = 0;
      me = &fiber;
      swapcontext(&scheduler, &fiber.context);
      if (!fiber.polls) idle = 0;
      left -= fiber.done;
    }
  }
  return true;
}
