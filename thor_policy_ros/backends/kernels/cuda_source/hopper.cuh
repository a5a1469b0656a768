#pragma once

// Hopper's instructions that CUDA C++ has no words for: barriers that count bytes, tiles brought by
// the copy engine, descriptors of the matrix units, programmatic dependent launch, and rounding.

using u32 = unsigned int;
using u64 = unsigned long long;

// Polls until a wait is taken for a deadlock: some seconds.
constexpr u32 PATIENCE = 1u << 26;

// What the copy engine knows of a matrix (CUtensorMap).
struct alignas(64) TensorMap {
  char bytes[128];
};

__device__ inline u32 shared_address(const void* at) {
  return static_cast<u32>(__cvta_generic_to_shared(at));
}

__device__ inline void barrier_init(u32 barrier, u32 arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// One arrival, and bytes that the copy engine will bring.
__device__ inline void barrier_expect(u32 barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

__device__ inline void barrier_arrive(u32 barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ inline void barrier_wait(u32 barrier, u32 parity) {
  u32 done = 0;
  for (u32 polls = 0; !done; polls++) {
    asm volatile(
        "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
    if (polls == PATIENCE) __trap();
  }
}

// Barriers made here are seen by the copy engine.
__device__ inline void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// A box of a matrix, whose bytes the barrier counts.
__device__ inline void bring_2d(const TensorMap& map, u32 to, u32 barrier, int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0],"
      " [%1, {%3, %4}], [%2];" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(x), "r"(y)
      : "memory");
}

// As bring_2d; of five dimensions, of which the first and the last vary.
__device__ inline void bring_5d(const TensorMap& map, u32 to, u32 barrier, int x, int last) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0],"
      " [%1, {%3, %5, %5, %5, %4}], [%2];" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(x), "r"(last), "r"(0)
      : "memory");
}

// Rows of 128 bytes, swizzled by 128, 8 of them every 1024 bytes.
__device__ inline u64 matrix_descriptor(u32 at) {
  return static_cast<u64>((at & 0x3ffff) >> 4) | (1ull << 16) | (64ull << 32) | (1ull << 62);
}

__device__ inline void wgmma_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ inline void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int LEFT>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}

template <int COUNT>
__device__ inline void fewer_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}

template <int COUNT>
__device__ inline void more_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// Goes on when the kernel before is complete and visible.
__device__ inline void wait_for_previous() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

// Lets the next kernel begin, once all blocks have said so or ended.
__device__ inline void let_next_begin() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

// Two numbers rounded, the first in the low half.
__device__ inline u32 pair_of(float first, float second) {
  u32 pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
}

__device__ inline u32 e4m3_pair(float first, float second) {
  unsigned short pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(second), "f"(first));
  return pair;
}
