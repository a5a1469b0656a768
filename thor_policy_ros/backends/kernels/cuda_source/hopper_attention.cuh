#pragma once

// Attention of 64 query rows of a block, whose keys two warpgroups have between them, on Hopper:
// softmax, and how the sums of both meet in shared memory and leave.
//
// A thread has two rows (8 apart) and of each the columns 2 * (lane % 4) and the next of every 8:
// a fragment is what it has of 8 columns, 4 sums.

#include "hopper.cuh"

constexpr int GROUPS = 2;  // warpgroups that multiply
constexpr int ROWS = 64;   // query rows of a block

#define NOTHING __int_as_float(0xff800000)  // the score of what does not count

__device__ inline int lane() { return threadIdx.x % 32; }
__device__ inline int place() { return threadIdx.x % 128; }  // in a warpgroup

// The first of a thread's two rows, in a block's.
__device__ inline int first_row() { return place() / 32 * 16 + lane() / 4; }

__device__ inline float exp2_of(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Of the four lanes that share rows.
__device__ inline float highest_of_row(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

__device__ inline float sum_of_row(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

// All threads that multiply; and those of one warpgroup.
__device__ inline void meet() { asm volatile("bar.sync 1, %0;" ::"n"(128 * GROUPS) : "memory"); }
__device__ inline void meet(int group) {
  asm volatile("bar.sync %0, 128;" ::"r"(2 + group) : "memory");
}

// What this thread wrote is seen by the matrix units, behind a barrier.
__device__ inline void show_to_matrix_units() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Nothing moves registers that the matrix units use from one side of this to the other.
template <int COUNT>
__device__ inline void hold(float (&values)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; i++) asm volatile("" : "+f"(values[i])::"memory");
}

template <int COUNT>
__device__ inline void hold(u32 (&values)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; i++) asm volatile("" : "+r"(values[i])::"memory");
}

// Softmax along keys: of a thread's two rows the highest score, the sum of its own weights, and
// sums of values. factor: of scores, with log2(e).
template <int FRAGMENTS>
struct Rows {
  float highest[2], total[2], sums[4 * FRAGMENTS];

  __device__ inline void begin() {
#pragma unroll
    for (int i = 0; i < 2; i++) highest[i] = NOTHING, total[i] = 0;
#pragma unroll
    for (int i = 0; i < 4 * FRAGMENTS; i++) sums[i] = 0;
  }

  // Scores become weights; what was summed up shrinks with the highest score's growth.
  template <int COUNT>
  __device__ inline void weigh(float (&scores)[COUNT], float factor) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float most = highest[half];
#pragma unroll
      for (int i = 0; i < COUNT; i += 4)
        most = fmaxf(most, fmaxf(scores[i + 2 * half], scores[i + 2 * half + 1]));
      most = highest_of_row(most);
      const float shrink = exp2_of((highest[half] - most) * factor), offset = most * factor;
      highest[half] = most;
      float odd = 0, even = 0;
#pragma unroll
      for (int i = 0; i < COUNT; i += 4) {
        float &a = scores[i + 2 * half], &b = scores[i + 2 * half + 1];
        a = exp2_of(a * factor - offset);
        b = exp2_of(b * factor - offset);
        even += a;
        odd += b;
      }
      total[half] = total[half] * shrink + (even + odd);
#pragma unroll
      for (int i = 0; i < 4 * FRAGMENTS; i += 4) {
        sums[i + 2 * half] *= shrink;
        sums[i + 2 * half + 1] *= shrink;
      }
    }
  }
};

// Weights as the matrix units take them: 16 keys of this thread's rows.
template <int COUNT>
__device__ inline void pack(u32 (&pairs)[COUNT / 2], const float (&weights)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT / 2; i++) pairs[i] = pair_of(weights[2 * i], weights[2 * i + 1]);
}

struct Result {
  void* out;
  const float* quantise;  // null: bfloat16
  long long row[2];       // where the thread's rows begin, in elements
  bool inside[2];
};

// Two fragments side by side. Neighbouring lanes exchange, so that each stores 4 columns of one.
__device__ inline void put_two(const Result& result, float share, int fragment, const float (&a)[4],
                               const float (&b)[4]) {
  const bool odd = lane() & 1;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const long long at = result.row[half] + (fragment + odd) * 8 + (lane() & 2) * 2;
    const float a0 = a[2 * half], a1 = a[2 * half + 1], b0 = b[2 * half], b1 = b[2 * half + 1];
    if (result.quantise) {
      const u32 x = e4m3_pair(a0 * share, a1 * share), y = e4m3_pair(b0 * share, b1 * share);
      const u32 got = __shfl_xor_sync(~0u, odd ? x : y, 1);
      const u32 word = odd ? got | y << 16 : x | got << 16;
      if (result.inside[half]) *reinterpret_cast<u32*>(static_cast<char*>(result.out) + at) = word;
    } else {
      const u32 x = pair_of(a0, a1), y = pair_of(b0, b1);
      const u32 got = __shfl_xor_sync(~0u, odd ? x : y, 1);
      const uint2 words = odd ? make_uint2(got, y) : make_uint2(x, got);
      if (result.inside[half])
        *reinterpret_cast<uint2*>(static_cast<unsigned short*>(result.out) + at) = words;
    }
  }
}

// Bytes through which the sums meet.
template <int FRAGMENTS>
constexpr int EXCHANGED = GROUPS * (1 + FRAGMENTS / 2) * 128 * sizeof(float4);

// Both warpgroups' sums become one; each stores half of the columns. area: EXCHANGED bytes that
// nobody uses once all have met.
template <int GROUP, int FRAGMENTS>
__device__ inline void finish(Rows<FRAGMENTS>& rows, float factor, const Result& result,
                              float4* area) {
  static_assert(FRAGMENTS % 4 == 0, "fragments leave in pairs");
  constexpr int HALF = FRAGMENTS / 2;
  constexpr int KEPT = GROUP ? HALF : 0, KEPT_END = GROUP ? FRAGMENTS : HALF;
  constexpr int GIVEN = GROUP ? 0 : HALF, GIVEN_END = GROUP ? HALF : FRAGMENTS;
  float4* mine = area + GROUP * (1 + HALF) * 128 + place();
  const float4* theirs = area + (1 - GROUP) * (1 + HALF) * 128 + place();
#pragma unroll
  for (int half = 0; half < 2; half++) rows.total[half] = sum_of_row(rows.total[half]);
  meet();
  mine[0] = make_float4(rows.highest[0], rows.highest[1], rows.total[0], rows.total[1]);
#pragma unroll
  for (int f = GIVEN; f < GIVEN_END; f++)
    mine[(1 + f - GIVEN) * 128] = make_float4(rows.sums[4 * f], rows.sums[4 * f + 1],
                                              rows.sums[4 * f + 2], rows.sums[4 * f + 3]);
  meet();
  const float4 other = theirs[0];
  const float highest[2] = {other.x, other.y}, total[2] = {other.z, other.w};
  float own[2], others[2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const float most = fmaxf(rows.highest[half], highest[half]);
    own[half] = exp2_of((rows.highest[half] - most) * factor);
    others[half] = exp2_of((highest[half] - most) * factor);
    const float share = 1.0f / (rows.total[half] * own[half] + total[half] * others[half]);
    own[half] *= share;
    others[half] *= share;
  }
  const float share = result.quantise ? 1.0f / *result.quantise : 1.0f;
#pragma unroll
  for (int f = KEPT; f < KEPT_END; f += 2) {
    float made[2][4];
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const float4 got = theirs[(1 + f + i - KEPT) * 128];
      const float* sums = rows.sums + 4 * (f + i);
      made[i][0] = sums[0] * own[0] + got.x * others[0];
      made[i][1] = sums[1] * own[0] + got.y * others[0];
      made[i][2] = sums[2] * own[1] + got.z * others[1];
      made[i][3] = sums[3] * own[1] + got.w * others[1];
    }
    put_two(result, share, f, made[0], made[1]);
  }
}
