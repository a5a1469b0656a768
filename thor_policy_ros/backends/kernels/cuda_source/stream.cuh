#pragma once

// The stream of weights, and what is multiplied by them.

#include "arithmetic.cuh"

struct Stream {
  const char* from;   // of the block
  u32 next, left;     // what this thread asks for next, and how many chunks are left to ask for
  u32 first, last;    // its slots in shared memory
  u32 slot;           // the one that is taken next, and then filled again
  u64 policy;

  __device__ inline u32 after(u32 at) const { return at == last ? first : at + SLOT; }

  // Between two steps: how many are still to come. All but DEPTH of their chunks were not asked for.
  __device__ inline int steps_to_come() const {
    constexpr u32 OF_STEP = LAYERS * CHUNKS;
    static_assert(DEPTH < OF_STEP, "the stream is never more than a step ahead");
    return (left + OF_STEP - 1) / OF_STEP;
  }

  // COUNT more chunks, into the slots of those taken just now; behind the last layer's come the
  // first one's again, for the next step.
  template <int COUNT>
  __device__ inline void ask() {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      if (left > 0) {
        asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(slot),
                     "l"(from + next), "l"(policy)
                     : "memory");
        next += SLOT;
        if (next >= STREAM) next -= STREAM;
        left--;
      }
      asm volatile("cp.async.commit_group;" ::: "memory");
      slot = after(slot);
    }
  }

  // The next COUNT chunks; whoever takes them then asks for as many.
  template <int COUNT>
  __device__ inline void take(uint4 (&chunks)[COUNT]) const {
    u32 from_slot = slot;
    asm volatile("cp.async.wait_group %0;" ::"n"(DEPTH - COUNT) : "memory");
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                   : "=r"(chunks[i].x), "=r"(chunks[i].y), "=r"(chunks[i].z), "=r"(chunks[i].w)
                   : "r"(from_slot)
                   : "memory");
      from_slot = after(from_slot);
    }
  }
};

// TILES tiles' sums over this warp's share of K, of which it has PIECES of 16 bytes of every row.
template <int TILES, int PIECES>
__device__ inline void add_tiles(Stream& stream, const uint4 (&first)[PIECES],
                                 const uint4 (&second)[PIECES], float (&sums)[TILES][4]) {
  constexpr int CHUNKS = PIECES * 32 / TAKEN;
  constexpr int AT_ONCE = TILES * CHUNKS > 4 ? 4 : TILES * CHUNKS;
  static_assert(TILES == 1 || TILES * CHUNKS <= 4, "a take is of whole tiles, or of part of one");
  float odd[TILES][4];
#pragma unroll
  for (int tile = 0; tile < TILES; tile++)
#pragma unroll
    for (int i = 0; i < 4; i++) sums[tile][i] = odd[tile][i] = 0;
#pragma unroll
  for (int begin = 0; begin < TILES * CHUNKS; begin += AT_ONCE) {
    uint4 chunks[AT_ONCE];
    stream.take(chunks);
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
      const int tile = (begin + i) / CHUNKS, c = (begin + i) % CHUNKS;
      const uint4 w = chunks[i];
#if FP8
      const u32 words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const uint4 &a = first[2 * c + j / 2], &b = second[2 * c + j / 2];
        const u32 b0 = placed(words[j]), b1 = placed(words[j] << 8);
        if (j % 2 == 0)
          multiply(sums[tile], a.x, b.x, a.y, b.y, b0, b1);
        else
          multiply(odd[tile], a.z, b.z, a.w, b.w, b0, b1);
      }
#else
      multiply(sums[tile], first[c].x, second[c].x, first[c].y, second[c].y, w.x, w.y);
      multiply(odd[tile], first[c].z, second[c].z, first[c].w, second[c].w, w.z, w.w);
#endif
    }
    stream.ask<AT_ONCE>();
  }
#pragma unroll
  for (int tile = 0; tile < TILES; tile++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      sums[tile][i] += odd[tile][i];
      if (FP8) sums[tile][i] *= LIFT;
    }
}
