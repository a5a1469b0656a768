#pragma once

// The four products of a layer with what follows each.

#include "block.cuh"

constexpr int NORMED = WIDTH / WARPS / 32;  // pieces of a row of x that a warp multiplies

// A warp's share of x [ROWS,WIDTH] at `at`, times the norm's scale; and of its rows' squares.
__device__ inline void receive_normed(Block& me, uint4 (&first)[NORMED], uint4 (&second)[NORMED],
                                      const char* at, const float* scales) {
  const int begin = me.warp * (WIDTH / WARPS) + 8 * me.quarter;
  float4 scale[2 * NORMED];
#pragma unroll
  for (int i = 0; i < NORMED; i++) {
    const float4* from = reinterpret_cast<const float4*>(scales + begin + 32 * i);
    scale[2 * i] = __ldg(from);
    scale[2 * i + 1] = __ldg(from + 1);
  }
  receive<NORMED>(first, second, at + panel_at(me.row, begin), PANEL, 8 * 64, me.asks,
                  me.has_second, me.patience);
  float a = 0, b = 0;
  scale_rows<NORMED>(first, scale, a);
  scale_rows<NORMED>(second, scale, b);
  a = Pair<1, 4>::over_lanes(a);
  b = Pair<1, 4>::over_lanes(b);
  if (me.quarter == 0) me.squares[me.row * WARPS + me.warp] = a;
  if (me.quarter == 0 && me.has_second) me.squares[(me.row + 8) * WARPS + me.warp] = b;
}

// x -> queries, and keys and values of the actions, turned to their positions.
__device__ inline void queries_keys_values(Block& me, const Layer& layer) {
  MARK(0, 0);
  using Couple = Pair<QKV_GROUP, 4>;  // of columns that RoPE turns
  uint4 first[NORMED], second[NORMED];
#pragma unroll 1
  for (int group = 0; group < QKV_TILES; group += QKV_GROUP) {
    const int begin = (blockIdx.x * QKV_TILES + group) * (TILE / 2);
    float2 bias[Couple::ROUNDS], scale[Couple::ROUNDS], turn[Couple::ROUNDS];
#pragma unroll
    for (int round = 0; round < Couple::ROUNDS; round++) {
      const Couple pair(round);
      const int couple = begin + pair.tile * (TILE / 2) + pair.column / 2;
      const int head = couple / HALF, column = couple % HALF + head * HEAD_DIM;
      bias[round] = scale[round] = make_float2(1, 1);
      turn[round] = make_float2(1, 0);
      if (head < HEADS + 2) {
        bias[round] = make_float2(__ldg(layer.constants + AT_BIAS1 + column),
                                  __ldg(layer.constants + AT_BIAS1 + column + HALF));
        if (FP8)
          scale[round] = make_float2(__ldg(layer.row_scales + column),
                                     __ldg(layer.row_scales + column + HALF));
      }
      if (head < HEADS + 1) {
        const int at = (layer.length + pair.row) * HALF + couple % HALF;
        turn[round] = make_float2(__ldg(layer.cosines + at), __ldg(layer.sines + at));
      }
    }
    if (group == 0)
      receive_normed(me, first, second, layer.set + AT_X0, layer.constants + AT_SCALE1);
    MARK(0, 1);
    me.tiles<QKV_GROUP, NORMED>(me.parts_a, first, second);
    MARK(0, 2);
    __syncthreads();
#pragma unroll
    for (int round = 0; round < Couple::ROUNDS; round++) {
      const Couple pair(round);
      const float2 sum = pair.sum(me.parts_a);
      const float rstd = pair.rstd(me.squares);
      const float x = sum.x * scale[round].x * rstd + bias[round].x;
      const float y = sum.y * scale[round].y * rstd + bias[round].y;
      const float a = x * turn[round].x - y * turn[round].y;
      const float b = y * turn[round].x + x * turn[round].y;
      // The next couple's values are 4 lanes away: two neighbours make a word.
      const float next_a = __shfl_down_sync(0xffffffffu, a, 4);
      const float next_b = __shfl_down_sync(0xffffffffu, b, 4);
      const int couple = begin + pair.tile * (TILE / 2) + pair.column / 2;
      const int head = couple / HALF, column = couple % HALF;
      if (pair.there && couple % 2 == 0 && head < HEADS + 2 && pair.lane < 2) {
        auto place = [&](int d) {
          return head < HEADS
                     ? layer.set + AT_Q + panel_at(pair.row, head * HEAD_DIM + d)
                     : layer.set + (head == HEADS ? AT_K : AT_V) + 2 * (pair.row * HEAD_DIM + d);
        };
        if (pair.lane == 0)
          publish(place(column), pair_of(a, next_a));
        else
          publish(place(column + HALF), pair_of(b, next_b));
      }
    }
    if (group + QKV_GROUP < QKV_TILES) __syncthreads();
  }
  MARK(0, 3);
}

// The end of a residual block: x += gate * (y @ w.T), for this block's own columns.
template <int K>
__device__ inline void residual_product(Block& me, const char* y, const float* gates,
                                        const float* row_scale, char* to, const Layer& layer,
                                        int phase) {
  constexpr int PIECES = K / WARPS / 32;
  using Own = Pair<1, 4>;
  static_assert(Own::ROUNDS == 1, "a thread has one pair");
  uint4 first[PIECES], second[PIECES];
#pragma unroll 1
  for (int tile = 0; tile < OUT_TILES; tile++) {
    float2 gate = make_float2(0, 0);
    if (const int column = own_column(tile) + Own(0).column; column < WIDTH) {
      gate = __ldg(reinterpret_cast<const float2*>(gates + column));
      if (FP8) {
        const float2 scale = __ldg(reinterpret_cast<const float2*>(row_scale + column));
        gate.x *= scale.x;
        gate.y *= scale.y;
      }
    }
    if (tile == 0)
      receive<PIECES>(first, second, y + panel_at(me.row, me.warp * (K / WARPS) + 8 * me.quarter),
                      PANEL, 8 * 64, me.asks, me.has_second, me.patience);
    MARK(phase, 1);
    me.tiles<1, PIECES>(me.parts_b, first, second);
    MARK(phase, 2);
    __syncthreads();
    const Own pair(0);
    const float2 sum = pair.sum(me.parts_b);
    const int column = own_column(tile) + pair.column;
    if (pair.there && pair.lane == 0 && column < WIDTH) {
      float2& x = me.residual[tile * ROWS * (TILE / 2) + pair.index];
      const u32 word = pair_of(x.x + gate.x * sum.x, x.y + gate.y * sum.y);
      x = make_float2(low(word), high(word));
      publish(to + panel_at(pair.row, column), word);
    }
    if (tile + 1 < OUT_TILES) __syncthreads();
  }
}

// Back into x; and the buffers of the layer before become absent.
__device__ inline void output_projection(Block& me, const Layer& layer) {
  MARK(3, 0);
  // Everybody is done with the layer before: its buffers become absent again. The warps that
  // do it have less to do here than the others.
  constexpr int BUSY = 8;
  constexpr int HELPERS = THREADS - 32 * BUSY;
  if (me.warp >= BUSY) {
    const int used = (AT_S + HEADS * layer.steps() * ROWS * 64) / 16;
    const uint4 clear = {ABSENT, ABSENT, ABSENT, ABSENT};
    for (int i = blockIdx.x * HELPERS + threadIdx.x - 32 * BUSY; i < used; i += BLOCKS * HELPERS)
      reinterpret_cast<uint4*>(layer.other)[i] = clear;
    // Up to the step's end: behind the last layer's lie those of the final norm.
    if (layer.index + 1 < LAYERS)
      bring_near(layer.constants + CONSTANTS, CONSTANTS + 2 * WIDTH, threadIdx.x - 32 * BUSY);
  }
  residual_product<ATTENDED>(me, layer.set + AT_Y, layer.constants + AT_GATE1,
                             layer.row_scales + AT_ROW_O, layer.set + AT_X1, layer, 3);
  // What was cleared is so before anything of this block lets the next layer begin.
  if (me.warp >= BUSY) asm volatile("fence.acq_rel.gpu;" ::: "memory");
  MARK(3, 3);
}

// x -> gelu(gate) * up.
__device__ inline void gate_and_up(Block& me, const Layer& layer) {
  MARK(4, 0);
  constexpr int LANES = GATE_UP_GROUP * ROWS * 4 >= 256 ? 1 : 2;
  using Unit = Pair<GATE_UP_GROUP, LANES>;
  uint4 first[NORMED], second[NORMED];
#pragma unroll 1
  for (int group = 0; group < GATE_UP_TILES; group += GATE_UP_GROUP) {
    const int begin = (blockIdx.x * GATE_UP_TILES + group) * (TILE / 2);
    float2 bias[Unit::ROUNDS], scale[Unit::ROUNDS];
#pragma unroll
    for (int round = 0; round < Unit::ROUNDS; round++) {
      const Unit pair(round);
      const int unit = begin + pair.tile * (TILE / 2) + pair.column / 2;
      bias[round] = scale[round] = make_float2(1, 1);
      if (unit < HIDDEN) {
        bias[round] = make_float2(__ldg(layer.constants + AT_BIAS2 + unit),
                                  __ldg(layer.constants + AT_BIAS2 + HIDDEN + unit));
        if (FP8)
          scale[round] = make_float2(__ldg(layer.row_scales + AT_ROW_GATE_UP + unit),
                                     __ldg(layer.row_scales + AT_ROW_GATE_UP + HIDDEN + unit));
      }
    }
    if (group == 0)
      receive_normed(me, first, second, layer.set + AT_X1, layer.constants + AT_SCALE2);
    MARK(4, 1);
    me.tiles<GATE_UP_GROUP, NORMED>(me.parts_a, first, second);
    MARK(4, 2);
    __syncthreads();
#pragma unroll
    for (int round = 0; round < Unit::ROUNDS; round++) {
      const Unit pair(round);
      const float2 sum = pair.sum(me.parts_a);
      const float rstd = pair.rstd(me.squares);
      const float gate = sum.x * scale[round].x * rstd + bias[round].x;
      const float up = sum.y * scale[round].y * rstd + bias[round].y;
      const float value = gelu_tanh(gate) * up;
      const float next = __shfl_down_sync(0xffffffffu, value, LANES);
      const int unit = begin + pair.tile * (TILE / 2) + pair.column / 2;
      if (pair.there && pair.lane == 0 && unit % 2 == 0 && unit < HIDDEN)
        publish(layer.set + AT_G + panel_at(pair.row, unit), pair_of(value * LIFT, next * LIFT));
    }
    if (group + GATE_UP_GROUP < GATE_UP_TILES) __syncthreads();
  }
  MARK(4, 3);
}

// Back into x, which the next layer reads, or the step's end.
__device__ inline void down_projection(Block& me, const Layer& layer) {
  MARK(5, 0);
  const bool last = layer.index + 1 == LAYERS;
  residual_product<HIDDEN>(me, layer.set + AT_G, layer.constants + AT_GATE2,
                           layer.row_scales + AT_ROW_DOWN,
                           last ? layer.set + AT_LAST : layer.other + AT_X0, layer, 5);
  MARK(5, 3);
}
