#pragma once

// Attention of the actions over prefix and actions, in two phases.

#include "block.cuh"

constexpr int OWN_TILES = (ROWS + TILE - 1) / TILE;  // of the actions' own keys

// Scores of every head, 8 keys at a time.
__device__ inline void attention_scores(Block& me, const Layer& layer) {
  MARK(1, 0);
  const int head = me.warp >> 1, begin = (me.warp & 1) * HALF + 8 * me.quarter;
  const int tiles = layer.prefix_tiles() + OWN_TILES;
#pragma unroll 1
  for (int tile = blockIdx.x; tile < tiles; tile += BLOCKS) {
    const bool own = tile >= layer.prefix_tiles();
    const int key = (own ? tile - layer.prefix_tiles() : tile) * TILE + me.row;
    const bool there = key < (own ? ROWS : layer.length);
    const char* from = (own ? layer.set + AT_K : layer.keys) + 2 * (key * HEAD_DIM + begin);
    uint4 k[4], first[4], second[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      k[i] = make_uint4(0, 0, 0, 0);
      if (there) k[i] = look(from + 64 * i);
    }
    receive<4>(first, second, layer.set + AT_Q + panel_at(me.row, head * HEAD_DIM + begin), PANEL,
               8 * 64, me.asks, me.has_second, me.patience);
    while (true) {
      u32 worst = 0;
#pragma unroll
      for (int i = 0; i < 4; i++) worst = max(worst, largest(k[i]));
      if (worst != ABSENT || !me.patience.go_on()) break;
#pragma unroll
      for (int i = 0; i < 4; i++)
        if (absent(k[i])) k[i] = look(from + 64 * i);
    }
    __syncwarp();
    MARK(1, 1);
    float sum[4] = {0, 0, 0, 0}, odd[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      multiply(sum, first[i].x, second[i].x, first[i].y, second[i].y, k[i].x, k[i].y);
      multiply(odd, first[i].z, second[i].z, first[i].w, second[i].w, k[i].z, k[i].w);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) sum[i] += odd[i];
    put_part<1>(me.parts_b, me.warp, 0, me.lane, sum);
    MARK(1, 2);
    __syncthreads();
    constexpr int PAIRS = HEADS * ROWS * (TILE / 2);
    const int begin_key = (own ? tile - layer.prefix_tiles() : tile) * TILE;
    const int end_key = own ? ROWS : layer.length;
    const int step = own ? layer.prefix_steps() : begin_key / 16;
#pragma unroll
    for (int round = 0; round < (PAIRS + THREADS - 1) / THREADS; round++) {
      const int index = round * THREADS + this_thread();
      if (index < PAIRS) {
        const int of_head = index / (ROWS * TILE / 2), inside = index % (ROWS * TILE / 2);
        const float* at = me.parts_b + 2 * of_head * ROWS * TILE + 2 * inside;
        const int row = inside / (TILE / 2), key = begin_key + 2 * (inside % (TILE / 2));
        const float a = (at[0] + at[ROWS * TILE]) * layer.score_scale;
        const float b = (at[1] + at[ROWS * TILE + 1]) * layer.score_scale;
        const float none = __uint_as_float(0xff800000u);
        publish(
            layer.set + AT_S + ((of_head * layer.steps() + step) * ROWS + row) * 64 + key % 16 * 4,
            key < end_key ? a : none, key + 1 < end_key ? b : none);
      }
    }
    if (tile + BLOCKS < tiles) __syncthreads();
  }
  if (blockIdx.x >= tiles) __syncthreads();
  MARK(1, 3);
}

// Softmax, and 16 columns of V of one head.
__device__ inline void attended_values(Block& me, const Layer& layer) {
  MARK(2, 0);
#pragma unroll 1
  for (int item = blockIdx.x; item < HEADS * VALUE_PARTS; item += BLOCKS) {
    const int head = item / VALUE_PARTS, column = item % VALUE_PARTS * 16;
    // In a step of 16 keys this lane scores 4, which lie side by side, and brings 8 columns of
    // one of V's rows.
    const int value_key = me.lane >> 1;
    const char* scores =
        layer.set + AT_S + (head * layer.steps() * ROWS + me.row) * 64 + 16 * me.quarter;
    const char* own_values =
        layer.set + AT_V + 2 * (value_key * HEAD_DIM + column + 8 * (me.lane & 1));
    const uint4 none = {0xff800000u, 0xff800000u, 0xff800000u, 0xff800000u};
    const uint4 missing = {ABSENT, ABSENT, ABSENT, ABSENT};
    uint4 v[STEPS], first[STEPS], second[STEPS];
#pragma unroll
    for (int i = 0; i < STEPS; i++) {
      const int step = me.warp + WARPS * i;
      const bool own = step == layer.prefix_steps();
      const int written = own ? OWN_TILES * TILE : layer.prefix_tiles() * TILE - 16 * step;
      const bool scored = step < layer.steps() && 4 * me.quarter < written;
      first[i] = scored ? missing : none;
      second[i] = scored && me.has_second ? missing : none;
      v[i] = make_uint4(0, 0, 0, 0);
      if (own && value_key < ROWS) v[i] = missing;
      if (!own && 16 * step + value_key < layer.length)
        v[i] = look(layer.values +
                    2 * ((16 * step + value_key) * HEAD_DIM + column + 8 * (me.lane & 1)));
    }
    while (true) {
      u32 worst = 0;
#pragma unroll
      for (int i = 0; i < STEPS; i++) {
        const char* at = scores + (me.warp + WARPS * i) * ROWS * 64;
        if (absent(first[i])) first[i] = look(at);
        if (absent(second[i])) second[i] = look(at + 8 * 64);
        if (absent(v[i])) v[i] = look(own_values);
      }
#pragma unroll
      for (int i = 0; i < STEPS; i++)
        worst = max(worst, max(max(largest(first[i]), largest(second[i])), largest(v[i])));
      if (worst != ABSENT || !me.patience.go_on()) break;
    }
    __syncwarp();
    const u32 rows_at = me.value_rows + me.warp * STEPS * 512;
#pragma unroll
    for (int i = 0; i < STEPS; i++)
      asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(rows_at + i * 512 + 16 * me.lane),
                   "r"(v[i].x), "r"(v[i].y), "r"(v[i].z), "r"(v[i].w)
                   : "memory");
    __syncwarp();
    MARK(2, 1);
    const float nothing = __uint_as_float(0xff800000u);
    float highest[2] = {nothing, nothing};
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
      const uint4 &a = first[step], &b = second[step];
      highest[0] = fmaxf(highest[0], fmaxf(fmaxf(__uint_as_float(a.x), __uint_as_float(a.y)),
                                           fmaxf(__uint_as_float(a.z), __uint_as_float(a.w))));
      highest[1] = fmaxf(highest[1], fmaxf(fmaxf(__uint_as_float(b.x), __uint_as_float(b.y)),
                                           fmaxf(__uint_as_float(b.z), __uint_as_float(b.w))));
    }
#pragma unroll
    for (int distance = 1; distance < 4; distance *= 2) {
      highest[0] = fmaxf(highest[0], __shfl_xor_sync(0xffffffffu, highest[0], distance));
      highest[1] = fmaxf(highest[1], __shfl_xor_sync(0xffffffffu, highest[1], distance));
    }
    // Scores 4t to 4t+3 of a lane are columns 2t, 2t+1, 2t+8, 2t+9 of the operand.
    const int slot = me.lane & 7, of = me.lane >> 3;
    const u32 turned_row = 32 * (4 * (slot >> 1) + (slot & 1) + 2 * (of & 1)) + 16 * (of >> 1);
    float base[2], sums[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < 2; i++) base[i] = highest[i] == nothing ? 0 : highest[i];
    float sum[2][4] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
      const u32 s[8] = {first[step].x,  first[step].y,  first[step].z,  first[step].w,
                        second[step].x, second[step].y, second[step].z, second[step].w};
      float p[8];
#pragma unroll
      for (int i = 0; i < 8; i++) {
        p[i] = exp2_of(__uint_as_float(s[i]) - base[i / 4]);
        sums[i / 4] += p[i];
      }
      const u32 a0 = pair_of(p[0], p[1]), a2 = pair_of(p[2], p[3]);
      const u32 a1 = pair_of(p[4], p[5]), a3 = pair_of(p[6], p[7]);
      u32 turned[4];
      load_turned(turned, rows_at + step * 512 + turned_row);
      multiply(sum[0], a0, a1, a2, a3, turned[0], turned[1]);
      multiply(sum[1], a0, a1, a2, a3, turned[2], turned[3]);
    }
    put_part<2>(me.parts_c, me.warp, 0, me.lane, sum[0]);
    put_part<2>(me.parts_c, me.warp, 1, me.lane, sum[1]);
    sums[0] = Pair<1, 4>::over_lanes(sums[0]);
    sums[1] = Pair<1, 4>::over_lanes(sums[1]);
    if (me.quarter == 0) {
      const int at = me.row * WARPS + me.warp;
      me.highest[at] = highest[0], me.totals[at] = sums[0];
      if (me.has_second)
        me.highest[at + 8 * WARPS] = highest[1], me.totals[at + 8 * WARPS] = sums[1];
    }
    MARK(2, 2);
    __syncthreads();
    using Joined = Pair<2, 4>;
#pragma unroll
    for (int round = 0; round < Joined::ROUNDS; round++) {
      const Joined pair(round);
      float of_warp[4], totals[4], top = nothing;
      pair.of_warps(of_warp, me.highest);
      pair.of_warps(totals, me.totals);
#pragma unroll
      for (int i = 0; i < 4; i++) top = fmaxf(top, of_warp[i]);
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
      float x = 0, y = 0, weight = 0;
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int warp = pair.lane * 4 + i;
        const float shrink = exp2_of(of_warp[i] - top);
        const float2 part =
            *reinterpret_cast<const float2*>(me.parts_c + warp * 2 * ROWS * TILE + 2 * pair.index);
        x += part.x * shrink;
        y += part.y * shrink;
        weight += totals[i] * shrink;
      }
      x = Joined::over_lanes(x);
      y = Joined::over_lanes(y);
      weight = Joined::over_lanes(weight);
      if (pair.there && pair.lane == 0) {
        const int to = head * HEAD_DIM + column + pair.tile * TILE + pair.column;
        const float lifted = LIFT / weight;
        publish(layer.set + AT_Y + panel_at(pair.row, to), pair_of(x * lifted, y * lifted));
      }
    }
    if (item + BLOCKS < HEADS * VALUE_PARTS) __syncthreads();
  }
  if (blockIdx.x >= HEADS * VALUE_PARTS) __syncthreads();
  MARK(2, 3);
}
