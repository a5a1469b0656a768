#pragma once

// What a block is and knows, and the marks of its clock.

#include "exchange.cuh"
#include "stream.cuh"
#include "sums.cuh"

// When a phase begins (0), has received (1), has multiplied (2) and has handed on (3).
#if CLOCKS
#define MARK(phase, which)                                                                         \
  do {                                                                                             \
    if (threadIdx.x == 0)                                                                          \
      layer.clocks[((layer.index * 6 + (phase)) * 4 + (which)) * BLOCKS + blockIdx.x] = clock64(); \
  } while (0)
#else
#define MARK(phase, which) (void)0
#endif

// What all phases of a layer know.
struct Layer {
  int index;
  char *set, *other;  // this layer's buffers, and those of the layers before and behind it
  const float *constants, *row_scales;
  const char *keys, *values;  // of the prefix
  const float *cosines, *sines;
  float score_scale;
  int length;  // of the prefix, in keys
  long long* clocks;

  // In tiles of 8 keys and steps of 16; behind them a step of the actions' own.
  __device__ inline int prefix_tiles() const { return (length + TILE - 1) / TILE; }
  __device__ inline int prefix_steps() const { return (length + 15) / 16; }
  __device__ inline int steps() const { return prefix_steps() + 1; }
};

struct Block {
  Stream stream;
  Patience patience;
  float *parts_a, *parts_b, *parts_c, *squares, *highest, *totals;
  float2* residual;              // its columns of x
  u32 value_rows;                // where V's rows go on their way to the matrix units
  int lane, warp, row, quarter;  // row, quarter: of this lane in operands and sums
  bool asks, has_second;

  // TILES tiles of the product at hand.
  template <int TILES, int PIECES>
  __device__ inline void tiles(float* parts, const uint4 (&first)[PIECES],
                               const uint4 (&second)[PIECES]) {
    constexpr int CHUNKS = PIECES * 32 / TAKEN;  // of a tile
    constexpr int AT_ONCE = TILES % 4 == 0 && CHUNKS == 1   ? 4
                            : TILES % 3 == 0 && CHUNKS == 1 ? 3
                            : TILES % 2 == 0 && CHUNKS <= 2 ? 2
                                                            : 1;
#pragma unroll
    for (int tile = 0; tile < TILES; tile += AT_ONCE) {
      float sums[AT_ONCE][4];
      add_tiles<AT_ONCE, PIECES>(stream, first, second, sums);
#pragma unroll
      for (int i = 0; i < AT_ONCE; i++) put_part<TILES>(parts, warp, tile + i, lane, sums[i]);
    }
  }
};
