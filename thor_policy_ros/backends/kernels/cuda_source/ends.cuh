#pragma once

// Both ends of a step, in float32: actions into x, and what the layers made of it into the actions.

#include "block.cuh"

struct Ends {
  const float *into, *into_bias;  // [WIDTH,ACTIONS], [WIDTH]
  const float *out, *out_bias;    // [ACTIONS,WIDTH], [ACTIONS]
  const float* target;            // of the guidance, [ROWS,ACTIONS]
  const float* noise;             // x_t of the first step, [ROWS,ACTIONS]; the host's memory too
  float* actions;                 // x_t of the others; one warp writes a value, and reads it again
  float* result;                  // as noise
};

// A NaN that is not ABSENT.
constexpr u32 NO_NUMBER = 0x7fffffffu;

// Of x_t's values a warp makes this one first. The last warps do: the first ones embed them.
__device__ inline int first_item(const Block& me) {
  return blockIdx.x + BLOCKS * (WARPS - 1 - me.warp);
}

__device__ inline float dot(const float4& a, const float4& b) {
  return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
}

__device__ inline float4 four_of(const float* at) {
  return __ldg(reinterpret_cast<const float4*>(at));
}

__device__ inline float over_warp(float x) {
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2)
    x += __shfl_xor_sync(0xffffffffu, x, distance);
  return x;
}

__device__ inline uint4 look_until_there(const char* at, Patience& patience) {
  uint4 v = look(at);
  while (absent(v) && patience.go_on()) v = look(at);
  return v;
}

// The noise, to all blocks: each value by the warp that makes a step of it.
__device__ inline void begin_flow(Block& me, const Ends& ends, char* x_t) {
#pragma unroll 1
  for (int item = first_item(me); item < ROWS * ACTIONS; item += BLOCKS * WARPS)
    if (me.lane == 0) {
      const float x = ends.noise[item];
      ends.actions[item] = x;
      publish(x_t + 4 * item, isnan(x) ? NO_NUMBER : __float_as_uint(x));
    }
}

// This block's columns of x, to all blocks.
__device__ inline void embed_actions(Block& me, const Ends& ends, const char* x_t, char* to) {
  using Own = Pair<1, 4>;               // the threads of `residual_product`
  constexpr int PIECES = ACTIONS / 16;  // of 4 actions, of a thread
  static_assert(Own::ROUNDS == 1, "a thread has one pair");
  const Own pair(0);
#pragma unroll 1
  for (int tile = 0; tile < OUT_TILES; tile++) {
    const int column = own_column(tile) + pair.column;
    // Who hands nothing on must not look: x_t may be cleared without waiting for it.
    const bool wanted = pair.there && column < WIDTH;
    float2 sum = make_float2(0, 0), bias = sum;
    if (wanted) {
      const int begin = 4 * PIECES * pair.lane;
      const float* weights = ends.into + column * ACTIONS + begin;
      float4 first[PIECES], second[PIECES];
#pragma unroll
      for (int i = 0; i < PIECES; i++) {
        first[i] = four_of(weights + 4 * i);
        second[i] = four_of(weights + ACTIONS + 4 * i);
      }
      bias = __ldg(reinterpret_cast<const float2*>(ends.into_bias + column));
      const int at = 4 * (pair.row * ACTIONS + begin);
#pragma unroll
      for (int i = 0; i < PIECES; i++) {
        const uint4 x = look_until_there(x_t + at + 16 * i, me.patience);
        const float4 floats = make_float4(__uint_as_float(x.x), __uint_as_float(x.y),
                                          __uint_as_float(x.z), __uint_as_float(x.w));
        sum.x += dot(floats, first[i]);
        sum.y += dot(floats, second[i]);
      }
    }
    __syncwarp();
    sum = make_float2(Own::over_lanes(sum.x), Own::over_lanes(sum.y));
    if (wanted && pair.lane == 0) {
      const u32 word = pair_of(sum.x + bias.x, sum.y + bias.y);
      me.residual[tile * ROWS * (TILE / 2) + pair.index] = make_float2(low(word), high(word));
      publish(to + panel_at(pair.row, column), word);
    }
  }
}

// Final norm, projection, guidance and Euler's step: a warp for one action of one row.
// constants: the norm's scale and shift, and behind them the next step's. x_t: where that looks for
// it; nullptr: there is none, and these are the result.
__device__ inline void euler_step(Block& me, const Ends& ends, const float* constants,
                                  const float* gains, float t, float dt, const char* hidden,
                                  char* x_t) {
  if (x_t != nullptr) bring_near(constants + 2 * WIDTH, CONSTANTS, threadIdx.x);
  constexpr int PIECES = WIDTH / 256;  // of 8 columns, of a lane
#pragma unroll 1
  for (int item = first_item(me); item < ROWS * ACTIONS; item += BLOCKS * WARPS) {
    const int row = item / ACTIONS, action = item % ACTIONS;
    float4 weights[2 * PIECES];
    float shifted = 0, scaled = 0, squares = 0;
#pragma unroll
    for (int i = 0; i < 2 * PIECES; i++) {
      const int column = 8 * (me.lane + 32 * (i / 2)) + 4 * (i % 2);
      const float4 w = four_of(ends.out + action * WIDTH + column);
      const float4 scale = four_of(constants + column);
      shifted += dot(w, four_of(constants + WIDTH + column));
      weights[i] = make_float4(w.x * scale.x, w.y * scale.y, w.z * scale.z, w.w * scale.w);
    }
    const float bias = __ldg(ends.out_bias + action), gain = gains[row];
    const float wanted = ends.target[item], x = ends.actions[item];
    const char* from = hidden + panel_at(row, 8 * me.lane);
    uint4 pieces[PIECES];
    pieces[0] = look_until_there(from, me.patience);
#pragma unroll
    for (int i = 1; i < PIECES; i++) pieces[i] = look(from + 8 * PANEL * i);
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
      uint4& p = pieces[i];
      if (absent(p)) p = look_until_there(from + 8 * PANEL * i, me.patience);
      const float4 a = make_float4(low(p.x), high(p.x), low(p.y), high(p.y));
      const float4 b = make_float4(low(p.z), high(p.z), low(p.w), high(p.w));
      scaled += dot(a, weights[2 * i]) + dot(b, weights[2 * i + 1]);
      squares += dot(a, a) + dot(b, b);
    }
    __syncwarp();
    scaled = over_warp(scaled);
    squares = over_warp(squares);
    float velocity = rsqrtf(squares / WIDTH + EPS) * scaled + over_warp(shifted) + bias;
    velocity -= gain * (wanted - (x - t * velocity));
    // A launch after a failure waits for nothing, and might find what is no NaN.
    const float next = me.patience.left == 0 ? __uint_as_float(NO_NUMBER) : x - dt * velocity;
    if (me.lane == 0) {
      if (x_t != nullptr) {
        ends.actions[item] = next;
        publish(x_t + 4 * item, __float_as_uint(next));
      } else {
        ends.result[item] = next;
      }
    }
  }
}
