#pragma once

// From block to block: words that are absent until they are written.

#include "sizes.cuh"

__device__ inline uint4 look(const char* at) {
  uint4 v;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(at)
               : "memory");
  return v;
}

// ABSENT is the largest word there is.
__device__ inline u32 largest(const uint4& v) { return max(max(v.x, v.y), max(v.z, v.w)); }
__device__ inline bool absent(const uint4& v) { return largest(v) == ABSENT; }

__device__ inline void publish(char* at, u32 word) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(at), "r"(word) : "memory");
}

__device__ inline void publish(char* at, float first, float second) {
  asm volatile("st.relaxed.gpu.global.v2.f32 [%0], {%1,%2};" ::"l"(at), "f"(first), "f"(second)
               : "memory");
}

// Constants of a step are read once in a chunk: into the L2 cache before anybody waits for them.
// Thread number `thread` of every block takes part.
__device__ inline void bring_near(const float* from, int count, int thread) {
  const int line = blockIdx.x + BLOCKS * thread;
  if (32 * line < count) asm volatile("prefetch.global.L2 [%0];" ::"l"(from + 32 * line));
}

// A thread that waited too long gives up: what it has are NaNs, which reach the result, and every
// later launch answers with NaNs at once.
struct Patience {
  u32 left;
  u32* failed;

  __device__ inline bool go_on() {
    if (left == 0) return false;
    if (--left == 0) *failed = 1;
    return true;
  }
};

// Where column k of a row lies in a buffer of panels.
__device__ constexpr int panel_at(int row, int k) { return k / 32 * PANEL + row * 64 + k % 32 * 2; }

// PIECES of 16 bytes of a row, `step` bytes apart, and of the row 8 further on, `below` bytes away;
// zeros for those not wanted.
// The lanes of `asking` look alone until theirs are there: the others' come at about the same time.
template <int PIECES>
__device__ inline void receive(uint4 (&first)[PIECES], uint4 (&second)[PIECES], const char* at,
                               int step, int below, bool asking, bool wants_second,
                               Patience& patience) {
  bool waiting = true;
  while (waiting) {
    u32 worst = 0;
    if (asking)
#pragma unroll
      for (int i = 0; i < PIECES; i++) worst = max(worst, largest(look(at + i * step)));
    waiting = __any_sync(0xffffffffu, worst == ABSENT) && patience.go_on();
  }
#pragma unroll
  for (int i = 0; i < PIECES; i++) {
    first[i] = look(at + i * step);
    second[i] = make_uint4(0, 0, 0, 0);
    if (wants_second) second[i] = look(at + i * step + below);
  }
  while (true) {
    u32 worst = 0;
#pragma unroll
    for (int i = 0; i < PIECES; i++) worst = max(worst, max(largest(first[i]), largest(second[i])));
    if (worst != ABSENT || !patience.go_on()) break;
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
      if (absent(first[i])) first[i] = look(at + i * step);
      if (absent(second[i])) second[i] = look(at + i * step + below);
    }
  }
  __syncwarp();
}
