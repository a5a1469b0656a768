#pragma once

// From warp to warp: parts of sums, and who adds which of them.

#include "arithmetic.cuh"

// A warp's part of the sums of a tile: [warp][tile][row][column].
template <int TILES>
__device__ inline void put_part(float* parts, int warp, int tile, int lane, const float (&sum)[4]) {
  const int row = lane >> 2, column = 2 * (lane & 3);
  float* at = parts + ((warp * TILES + tile) * ROWS + row) * TILE + column;
  *reinterpret_cast<float2*>(at) = make_float2(sum[0], sum[1]);
  if (row + 8 < ROWS) *reinterpret_cast<float2*>(at + 8 * TILE) = make_float2(sum[2], sum[3]);
}

// Asked for each time: what follows from them is sooner computed than kept.
__device__ inline int this_thread() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

__device__ inline int this_block() {
  int block;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(block));
  return block;
}

// Of x: the first column of a block's tile.
__device__ inline int own_column(int tile) { return (this_block() * OUT_TILES + tile) * TILE; }

// Two neighbouring columns of a row, made by LANES threads side by side.
template <int TILES, int LANES>
struct Pair {
  static constexpr int PAIRS = TILES * ROWS * (TILE / 2);
  static constexpr int ROUNDS = (PAIRS * LANES + THREADS - 1) / THREADS;
  int index, lane, tile, row, column;
  bool there;

  __device__ inline Pair(int round) {
    const int item = round * THREADS + this_thread();
    there = item < PAIRS * LANES;
    index = there ? item / LANES : 0;
    lane = item % LANES;
    tile = index / (ROWS * (TILE / 2));
    row = index / (TILE / 2) % ROWS;
    column = 2 * (index % (TILE / 2));
  }

  // The whole sum, in each of its threads.
  __device__ inline float2 sum(const float* parts) const {
    float2 total = make_float2(0, 0);
#pragma unroll
    for (int i = 0; i < WARPS / LANES; i++) {
      const int warp = lane * (WARPS / LANES) + i;
      const float2 part =
          *reinterpret_cast<const float2*>(parts + warp * TILES * ROWS * TILE + 2 * index);
      total.x += part.x;
      total.y += part.y;
    }
    return make_float2(over_lanes(total.x), over_lanes(total.y));
  }

  // The parts of this pair's row of an array [row][warp] that belong to this lane.
  __device__ inline void of_warps(float (&out)[WARPS / LANES], const float* statistics) const {
    const float4* at =
        reinterpret_cast<const float4*>(statistics + row * WARPS + lane * (WARPS / LANES));
#pragma unroll
    for (int i = 0; i < WARPS / LANES / 4; i++) {
      const float4 four = at[i];
      out[4 * i] = four.x, out[4 * i + 1] = four.y, out[4 * i + 2] = four.z,
              out[4 * i + 3] = four.w;
    }
  }

  // 1 / sqrt(mean of squares), whose parts are [row][warp].
  __device__ inline float rstd(const float* squares) const {
    float parts[WARPS / LANES], total = 0;
    of_warps(parts, squares);
#pragma unroll
    for (int i = 0; i < WARPS / LANES; i++) total += parts[i];
    return rsqrtf(over_lanes(total) / WIDTH + EPS);
  }

  __device__ static inline float over_lanes(float x) {
#pragma unroll
    for (int distance = 1; distance < LANES; distance *= 2)
      x += __shfl_xor_sync(0xffffffffu, x, distance);
    return x;
  }
};

// The rows of x in the order in which they are multiplied, times the norm's scale; their squares.
template <int PIECES>
__device__ inline void scale_rows(uint4 (&rows)[PIECES], const float4 (&scale)[2 * PIECES],
                                  float& squares) {
#pragma unroll
  for (int i = 0; i < PIECES; i++) {
    u32* words[4] = {&rows[i].x, &rows[i].y, &rows[i].z, &rows[i].w};
    const float s[8] = {scale[2 * i].x,     scale[2 * i].y,     scale[2 * i].z,
                        scale[2 * i].w,     scale[2 * i + 1].x, scale[2 * i + 1].y,
                        scale[2 * i + 1].z, scale[2 * i + 1].w};
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const float a = low(*words[j]), b = high(*words[j]);
      squares += a * a + b * b;
      *words[j] = pair_of(a * s[2 * j] * LIFT, b * s[2 * j + 1] * LIFT);
    }
  }
}
