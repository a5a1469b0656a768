// A product of activations and weights on Hopper, with what follows it: out = f(x @ w.T + bias).
// What follows may be RoPE: then rows of weights are heads, and keys and values go to a cache.
//
// Columns of the matrix units are tokens and rows are features (weights), so that tiles fit any
// number of tokens to 8. One thread has tiles of both brought to shared memory, swizzled by 128
// bytes, and two warpgroups multiply them. Weights are asked for before the kernel in front of this
// one ends.
//
// The features that meet in a thread lie side by side (the copy engine brings rows of weights in
// that order), so that results leave in runs of 4 (2 with one block of 64 rows a warpgroup)
// without a way through shared memory.
//
// Sizes are macros: FP8, TOKENS (of a tile), HIGH (blocks of 64 features a warpgroup), STAGES,
// MANY (registers of a thread that multiplies), EPILOGUE, OUT_FP8, BIASED. `multiply` is written
// for TOKENS by hopper_product.py.

#include "hopper.cuh"

#define PLAIN 0
#define GELU 1
#define GEGLU 2    // rows of weights are gate and up in turns: half as many features
#define PARTS 3    // float32 sums over a share of K: [splits, tokens, features]
#define PLACED 4   // plus a row of a float32 table, which tokens take in turns
#define ROTATED 5  // rows of weights are both halves of heads in turns: half as many features

constexpr int GROUPS = 2;
constexpr int ROWS = GROUPS * HIGH * 64;  // of weights, in a tile
constexpr int FEATURES = EPILOGUE == GEGLU || EPILOGUE == ROTATED ? ROWS / 2 : ROWS;
constexpr int RUN = FEATURES / (GROUPS * 32);  // features of a thread, side by side
constexpr u32 WEIGHT_BYTES = ROWS * 128, INPUT_BYTES = TOKENS * 128;
constexpr u32 STAGE_BYTES = WEIGHT_BYTES + INPUT_BYTES;

// A product that follows brings weights meanwhile, and attention of few blocks is ready. The many
// small blocks of a norm would crowd on the multiprocessors that have no tile of this one, and stay
// there.
constexpr bool NEXT_EARLY = EPILOGUE == GELU || EPILOGUE == GEGLU || EPILOGUE == ROTATED;

constexpr int HALF = 128;  // of a head that is rotated

static_assert(EPILOGUE == ROTATED || RUN == 2 || RUN == 4, "a thread's features leave as words");

struct Item {
  int feature, token, split, begin, end;  // first ones; begin, end: steps of 128 bytes of K
};

struct Work {
  int features, token_tiles, feature_tiles, splits, steps;

  __device__ inline int count() const { return token_tiles * feature_tiles * splits; }

  __device__ inline Item item(int index) const {
    const int tokens = index % token_tiles, rest = index / token_tiles;
    const int tile = rest % feature_tiles, split = rest / feature_tiles;
    // The last tile ends with the features, so that it may make some of them again, and alike.
    return {min(tile * FEATURES, features - FEATURES), tokens * TOKENS, split,
            steps * split / splits, steps * (split + 1) / splits};
  }
};

struct Ring {
  u32 stages, full, empty;  // addresses: of a stage's tiles, of its barriers

  __device__ inline u32 weights(u32 turn) const { return stages + turn % STAGES * STAGE_BYTES; }
  __device__ inline u32 inputs(u32 turn) const { return weights(turn) + WEIGHT_BYTES; }
  __device__ inline u32 full_of(u32 turn) const { return full + turn % STAGES * 8; }
  __device__ inline u32 empty_of(u32 turn) const { return empty + turn % STAGES * 8; }
  __device__ inline u32 parity(u32 turn) const { return turn / STAGES & 1; }
};

__device__ inline float gelu_tanh(float x) {
  const float u = -2.3022081983389054f * (x + 0.044715f * x * x * x);  // -2 log2(e) sqrt(2/pi)
  float y, z;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(u));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(z) : "f"(1.0f + y));
  return x * z;
}

template <int WORDS>
__device__ inline void store_words(void* to, const u32 (&words)[WORDS], int inside) {
  static_assert(WORDS == 1 || WORDS == 2 || WORDS == 4);
  if constexpr (WORDS == 1)
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %2, 0;\n@p st.global.b32 [%0], %1;\n}" ::"l"(to),
                 "r"(words[0]), "r"(inside)
                 : "memory");
  else if constexpr (WORDS == 2)
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %3, 0;\n@p st.global.v2.b32 [%0], {%1, %2};\n}" ::"l"(to),
        "r"(words[0]), "r"(words[1]), "r"(inside)
        : "memory");
  else
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %5, 0;\n@p st.global.v4.b32 [%0], {%1, %2, %3, %4};\n}" ::
            "l"(to),
        "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3]), "r"(inside)
        : "memory");
}

// Where heads go: queries [tokens,heads,2*HALF], keys and values [groups,capacity,2*HALF], whose
// groups are `stride` elements apart, from row `start` on.
struct Heads {
  const float *cosines, *sines;  // [positions,HALF]
  int start;
  unsigned short *keys, *values;
  int queries, groups, capacity;
  long long stride;
};

struct Result {
  void* out;
  const unsigned short* bias;
  float scale, share;  // of sums, and the reciprocal of the output's
  int tokens, features;
  const float* table;  // PLACED: [places,features]
  int places;
  Heads heads;
};

// The first feature of a thread's.
__device__ inline int own_feature(const Item& item, int group) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  return item.feature + ((group * 4 + warp) * 8 + lane / 4) * RUN;
}

// Its first token.
__device__ inline int own_token(const Item& item) { return item.token + threadIdx.x % 4 * 2; }

// A thread's tokens, counted from its first one.
constexpr int OWN_TOKENS = TOKENS / 4;
__device__ constexpr int own_row(int index) { return index / 2 * 8 + index % 2; }

template <int COUNT>
__device__ inline void fetch(float (&values)[COUNT], const float* at) {
  if constexpr (COUNT == 1) {
    values[0] = __ldg(at);
  } else {
#pragma unroll
    for (int i = 0; i < COUNT; i += 2) {
      const float2 two = __ldg(reinterpret_cast<const float2*>(at + i));
      values[i] = two.x;
      values[i + 1] = two.y;
    }
  }
}

#if EPILOGUE == ROTATED

// A thread has both halves of RUN pairs of one head, queries, keys or values, and rotates them
// (values by nothing).
struct Ending {
  float cosines[OWN_TOKENS][RUN], sines[OWN_TOKENS][RUN];
  unsigned short* to;  // where its first token's row has its first pair
  int step, left;      // from row to row; and how many rows there are from there on

  __device__ inline Ending(const Result& result, const Item& item, int group) {
    const Heads& heads = result.heads;
    const int pair = own_feature(item, group), head = pair / HALF, j = pair % HALF;
    const int key = head - heads.queries, value = key - heads.groups;
    const int token = own_token(item), position = heads.start + token;
    const int there = result.tokens - token;
    if (key < 0) {
      to = static_cast<unsigned short*>(result.out) + head * 2 * HALF;
      step = heads.queries * 2 * HALF;
      to += static_cast<long long>(token) * step + j;
      left = there;
    } else {
      to = value < 0 ? heads.keys + key * heads.stride : heads.values + value * heads.stride;
      step = 2 * HALF;
      to += static_cast<long long>(position) * step + j;
      left = min(there, heads.capacity - position);
    }
    const int rows = value < 0 ? there : 0;
    const long long at = static_cast<long long>(position) * HALF + j;
    const float *cosine = heads.cosines + at, *sine = heads.sines + at;
#pragma unroll
    for (int i = 0; i < OWN_TOKENS; i++) {
#pragma unroll
      for (int b = 0; b < RUN; b++) cosines[i][b] = 1, sines[i][b] = 0;
      if (own_row(i) >= rows) continue;
      fetch(cosines[i], cosine + own_row(i) * HALF);
      fetch(sines[i], sine + own_row(i) * HALF);
    }
  }

  __device__ inline void store(int row, int column, u32 word) const {
    const u32 words[1] = {word};
    store_words(to + row * step + column, words, row < left);
  }

  __device__ inline void put(const Result& result, const float (&sums)[HIGH][TOKENS / 2]) const {
    const int odd_lane = threadIdx.x / 4 % 2;
#pragma unroll
    for (int j = 0; j < TOKENS / 8; j++) {
      float low[2][RUN], high[2][RUN];
#pragma unroll
      for (int odd = 0; odd < 2; odd++)
#pragma unroll
        for (int b = 0; b < RUN; b++) {
          const float first = sums[b][4 * j + odd] * result.scale;
          const float second = sums[b][4 * j + 2 + odd] * result.scale;
          const float cosine = cosines[2 * j + odd][b], sine = sines[2 * j + odd][b];
          low[odd][b] = first * cosine - second * sine;
          high[odd][b] = second * cosine + first * sine;
        }
      if constexpr (RUN == 2) {
#pragma unroll
        for (int odd = 0; odd < 2; odd++) {
          store(8 * j + odd, 0, pair_of(low[odd][0], low[odd][1]));
          store(8 * j + odd, HALF, pair_of(high[odd][0], high[odd][1]));
        }
      } else {
        // Neighbours exchange, so that each has two pairs of one token.
        const u32 even_token = pair_of(low[0][0], high[0][0]);
        const u32 odd_token = pair_of(low[1][0], high[1][0]);
        const u32 kept = odd_lane ? odd_token : even_token;
        const u32 got = __shfl_xor_sync(~0u, odd_lane ? even_token : odd_token, 4);
        const u32 left = odd_lane ? got : kept, right = odd_lane ? kept : got;
        const int row = 8 * j + odd_lane;
        store(row, -odd_lane, __byte_perm(left, right, 0x5410));
        store(row, HALF - odd_lane, __byte_perm(left, right, 0x7632));
      }
    }
  }
};

#else

__device__ inline void store_short(void* to, u32 value, int inside) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %2, 0;\n@p st.global.b16 [%0], %1;\n}" ::"l"(to),
               "h"(static_cast<unsigned short>(value)), "r"(inside)
               : "memory");
}

// Predicated, so that what one token wants computed need not wait for another's branch.
__device__ inline void store_run(void* out, long long at, const float (&values)[RUN], float share,
                                 int inside) {
#if EPILOGUE == PARTS
  u32 words[RUN];
#pragma unroll
  for (int i = 0; i < RUN; i++) words[i] = __float_as_uint(values[i]);
  store_words(static_cast<float*>(out) + at, words, inside);
#elif OUT_FP8
  char* to = static_cast<char*>(out) + at;
  if constexpr (RUN == 4) {
    const u32 words[1] = {e4m3_pair(values[0] * share, values[1] * share) |
                          e4m3_pair(values[2] * share, values[3] * share) << 16};
    store_words(to, words, inside);
  } else {
    store_short(to, e4m3_pair(values[0] * share, values[1] * share), inside);
  }
#else
  u32 words[RUN / 2];
#pragma unroll
  for (int i = 0; i < RUN / 2; i++) words[i] = pair_of(values[2 * i], values[2 * i + 1]);
  store_words(static_cast<unsigned short*>(out) + at, words, inside);
#endif
}

struct Ending {
  const Item& item;
  int group;
#if EPILOGUE == PLACED
  float places[OWN_TOKENS][RUN];
#endif

  __device__ inline Ending(const Result& result, const Item& item, int group)
      : item(item), group(group) {
#if EPILOGUE == PLACED
    const float* table = result.table + own_feature(item, group);
#pragma unroll
    for (int i = 0; i < OWN_TOKENS; i++)
      fetch(places[i], table + (own_token(item) + own_row(i)) % result.places * result.features);
#endif
  }

  __device__ inline void put(const Result& result, const float (&sums)[HIGH][TOKENS / 2]) const {
    const int feature = own_feature(item, group), token = own_token(item);
    float bias[RUN];
#pragma unroll
    for (int i = 0; i < RUN; i++)
      bias[i] = BIASED && (EPILOGUE != PARTS || item.split == 0)
                    ? __uint_as_float(static_cast<u32>(result.bias[feature + i]) << 16)
                    : 0.0f;
    long long at = static_cast<long long>(token) * result.features + feature;
    if (EPILOGUE == PARTS)
      at += static_cast<long long>(item.split) * result.tokens * result.features;
#pragma unroll
    for (int j = 0; j < TOKENS / 8; j++)
#pragma unroll
      for (int odd = 0; odd < 2; odd++) {
        float values[RUN];
#pragma unroll
        for (int b = 0; b < HIGH; b++) {
          const float first = sums[b][4 * j + odd] * result.scale;
          const float second = sums[b][4 * j + 2 + odd] * result.scale;
          if constexpr (EPILOGUE == GEGLU) {
            values[b] = gelu_tanh(first) * second;
          } else {
            values[2 * b] = first + bias[2 * b];
            values[2 * b + 1] = second + bias[2 * b + 1];
          }
        }
#if EPILOGUE == PLACED
#pragma unroll
        for (int i = 0; i < RUN; i++) values[i] += places[2 * j + odd][i];
#endif
        if constexpr (EPILOGUE == GELU)
#pragma unroll
          for (int i = 0; i < RUN; i++) values[i] = gelu_tanh(values[i]);
        const int row = j * 8 + odd;
        store_run(result.out, at + static_cast<long long>(row) * result.features, values,
                  result.share, token + row < result.tokens);
      }
  }
};

#endif

struct Bringer {
  const TensorMap &weight_map, &input_map;
  Ring ring;

  __device__ inline void weights(const Item& item, int step, u32 turn) const {
#pragma unroll
    for (int box = 0; box < GROUPS * HIGH; box++) {
      const int group = box / HIGH, b = box % HIGH;
      // The last dimension counts rows in twos; of gate and up, features; of heads, rows.
      const int own = item.feature + group * 32 * HIGH + b;
      const int at = EPILOGUE == GEGLU     ? own
                     : EPILOGUE == ROTATED ? own / HALF * 2 * HALF + own % HALF
                                           : (item.feature + group * 64 * HIGH) / 2 + b;
      bring_5d(weight_map, ring.weights(turn) + box * 64 * 128, ring.full_of(turn), step * 128, at);
    }
  }

  __device__ inline void inputs(const Item& item, int step, u32 turn) const {
    bring_2d(input_map, ring.inputs(turn), ring.full_of(turn), step * 128, item.token);
  }

  __device__ inline void all(const Work& work) const {
    u32 turn = 0;
    for (int index = blockIdx.x; index < work.count(); index += gridDim.x) {
      const Item item = work.item(index);
      int step = item.begin;
      if (turn == 0) {
        const int ahead = min(STAGES, item.end - item.begin);
        for (int i = 0; i < ahead; i++) {
          barrier_expect(ring.full_of(i), STAGE_BYTES);
          weights(item, item.begin + i, i);
        }
        wait_for_previous();
        if (NEXT_EARLY) let_next_begin();
        for (int i = 0; i < ahead; i++) inputs(item, item.begin + i, i);
        turn = ahead;
        step += ahead;
      }
      for (; step < item.end; step++, turn++) {
        barrier_wait(ring.empty_of(turn), ring.parity(turn) ^ 1);
        barrier_expect(ring.full_of(turn), STAGE_BYTES);
        weights(item, step, turn);
        inputs(item, step, turn);
      }
    }
  }
};

__device__ inline void release(const Ring& ring, u32 turn) {
  if (threadIdx.x % 128 == 0) barrier_arrive(ring.empty_of(turn));
}

__device__ inline void multiply_all(const Ring& ring, const Work& work, const Result& result,
                                    int group) {
  float sums[HIGH][TOKENS / 2];
#pragma unroll
  for (int b = 0; b < HIGH; b++)
#pragma unroll
    for (int i = 0; i < TOKENS / 2; i++) sums[b][i] = 0;
  u32 turn = 0;
  for (int index = blockIdx.x; index < work.count(); index += gridDim.x) {
    const Item item = work.item(index);
    for (int step = item.begin; step < item.end; step++, turn++) {
      barrier_wait(ring.full_of(turn), ring.parity(turn));
      const u64 inputs = matrix_descriptor(ring.inputs(turn));
      const u64 weights = matrix_descriptor(ring.weights(turn) + group * HIGH * 64 * 128);
      wgmma_begin();
#pragma unroll
      for (int k = 0; k < 4; k++)
#pragma unroll
        for (int b = 0; b < HIGH; b++)
          multiply(sums[b], weights + b * (64 * 128 / 16) + k * 2, inputs + k * 2,
                   step > item.begin || k > 0);
      wgmma_commit();
      if (step > item.begin) {
        wgmma_wait<1>();
        release(ring, turn - 1);
      }
    }
    const Ending ending(result, item, group);
    wgmma_wait<0>();
    release(ring, turn - 1);
    ending.put(result, sums);
  }
}

extern "C" __global__ void __launch_bounds__(128 * (GROUPS + 1), 1)
    hopper_product(const __grid_constant__ TensorMap weight_map,
                   const __grid_constant__ TensorMap input_map, void* out,
                   const unsigned short* bias, const float* input_scale, const float* weight_scale,
                   const float* quantise, int tokens, int features, int token_tiles,
                   int feature_tiles, int splits, int steps, const float* table, int places,
                   const float* sines, const int* start, unsigned short* keys,
                   unsigned short* values, int queries, int groups, int capacity,
                   long long stride) {
  extern __shared__ __align__(1024) char shared[];
  __shared__ u64 barriers[2 * STAGES];
  const Ring ring = {shared_address(shared), shared_address(barriers),
                     shared_address(barriers + STAGES)};
  const Work work = {features, token_tiles, feature_tiles, splits, steps};
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) {
      barrier_init(ring.full_of(i), 1);
      barrier_init(ring.empty_of(i), GROUPS);
    }
    publish_barriers();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    fewer_registers<24>();
    if (threadIdx.x == 0) Bringer{weight_map, input_map, ring}.all(work);
  } else {
    more_registers<MANY>();
    const float scale = FP8 ? *input_scale * *weight_scale : 1.0f;
    const float share = OUT_FP8 ? 1.0f / *quantise : 1.0f;
    const Heads heads = {table,  sines,    EPILOGUE == ROTATED ? *start : 0,
                         keys,   values,   queries,
                         groups, capacity, stride};
    multiply_all(ring, work, {out, bias, scale, share, tokens, features, table, places, heads},
                 threadIdx.x / 128 - 1);
  }
}
