/* Instructions that CUDA's C++ has no word for. Tests compile the kernel for a CPU, with their own versions of these.
*/

#pragma once

#define DEVICE __device__ __forceinline__
#define PRAGMA(text) _Pragma(#text)
#define UNROLL_BY(count) PRAGMA(unroll count)
#define ROLLED UNROLL_BY(1) /* unrolled, such a loop would need more registers than there are */
#define EACH(i, count) PRAGMA(unroll) for (int i = 0; i < (count); ++i)

#if CLUSTER > 1
#define CLUSTER_DIMENSIONS __cluster_dims__(CLUSTER, 1, 1)
DEVICE int cluster_rank() { int rank; asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank)); return rank; }
DEVICE void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}
/* The same place in the shared memory of another block of the cluster. */
template <class Place> DEVICE Place &in_block(Place &place, int rank) {
  Place *there;
  asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(&place), "r"(rank));
  return *there;
}
#else
#define CLUSTER_DIMENSIONS
DEVICE int cluster_rank() { return 0; }
DEVICE void cluster_barrier() { __syncthreads(); }
template <class Place> DEVICE Place &in_block(Place &place, int) { return place; }
#endif

template <class Shared> DEVICE Shared &shared_memory() {
  extern __shared__ float4 memory[];
  return *reinterpret_cast<Shared *>(memory);
}

/* Copies 16 bytes from global to shared memory without waiting; `copies_done` waits for this thread's copies. */
DEVICE void start_copy(float *to, const float *from) {
  const unsigned place = __cvta_generic_to_shared(to);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(place), "l"(from) : "memory");
}
DEVICE void copies_done() { asm volatile("cp.async.wait_all;" ::: "memory"); }

/* For barriers of the grid: what was written before an addition is seen after it was read, and a fence. */
DEVICE void add_one(unsigned *to) { asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(to) : "memory"); }
DEVICE unsigned read(const unsigned *from) {
  unsigned value;
  asm volatile("ld.relaxed.gpu.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}
DEVICE void fence() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

/* To about one unit in the last place. */
DEVICE float power_of_2(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
DEVICE float reciprocal(float x) { float y; asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }

/* The same number, of which the compiler knows nothing. What a loop computes from it then stays in the loop: taken out,
it would occupy registers all the time, and push others into local memory. */
DEVICE int opaque(int i) { asm volatile("" : "+r"(i)); return i; }
