// All layers of pi0.5's action expert for one denoise step, in one launch (expert_stack.py).
//
// With ten rows a layer is a few megabytes of weights and next to no arithmetic: what counts is that
// weights never stop coming, and how long a value takes from the block that makes it to the blocks
// that read it. So every multiprocessor holds one block for the whole step, and
//
// - each thread streams its own share of all weights through shared memory, in the order in which it
//   multiplies them: nobody else reads them, so nobody waits for anybody;
// - activations pass from block to block through buffers whose words are ABSENT until they are
//   written: a reader asks for the data itself until it is there. No barrier, no flag, no fence.
//   ABSENT is a NaN that no conversion produces. A layer clears the buffers of the layer before it:
//   whoever has received a layer's input knows that everybody is done with the last layer's.
//
// Six phases a layer: qkv, scores, values, o, gate-up, down. In each, the sum over K is shared by the
// 16 warps, whose parts meet in shared memory (one barrier of the block a phase).
//
// All blocks ask the L2 cache for the same activations at once, which takes as much of it as the
// weights do. So they lie as warps read them, all rows of 32 columns in one run (a panel); and who
// waits asks for one row alone, until that is there.
//
// Given as macros: ROWS (8 to 16), WIDTH, HEADS, HEAD_DIM, HIDDEN, LAYERS (even), BLOCKS, GROUP (tiles
// between two barriers, at the most), DEPTH (of the stream, 4 at the least), KEYS (rows of the K,V
// buffers), FP8 (0 or 1: E4M3 weights with a scale for each row).

typedef unsigned int u32;
typedef unsigned long long u64;

constexpr int WARPS = 16;
constexpr int THREADS = 32 * WARPS;
constexpr u32 ABSENT = 0xffffffffu;
constexpr int SLOT = 16 * THREADS;          // bytes of a chunk of the stream
constexpr int TAKEN = FP8 ? 64 : 32;        // inputs of a tile's 8 columns in a warp's chunk
constexpr int TILE = 8;                     // columns of a tile
constexpr int QKV = (HEADS + 2) * HEAD_DIM;
constexpr int ATTENDED = HEADS * HEAD_DIM;
constexpr int HALF = HEAD_DIM / 2;
constexpr int PANEL = 64 * ROWS;            // bytes of 32 columns of every row
constexpr float EPS = 1e-6f;
// E4M3 in a bfloat16's place is the value times 2^-120: what it is multiplied by makes up for half
// of that beforehand, and sums for the rest.
constexpr float LIFT = FP8 ? 0x1p60f : 1.0f;
constexpr u32 PATIENCE = 1u << 23;          // unsuccessful looks, seconds, before a thread gives up

constexpr int each(int total) { return (total + BLOCKS - 1) / BLOCKS; }
constexpr int larger(int a, int b) { return a > b ? a : b; }
// Tiles of a block, and how many it multiplies between two barriers.
constexpr int group_of(int tiles) {
  for (int group = GROUP; group > 1; group--)
    if (tiles % group == 0) return group;
  return 1;
}
constexpr int QKV_TILES = each(QKV / TILE), QKV_GROUP = group_of(QKV_TILES);
constexpr int OUT_TILES = each(WIDTH / TILE);
constexpr int GATE_UP_TILES = each(2 * HIDDEN / TILE), GATE_UP_GROUP = group_of(GATE_UP_TILES);
constexpr int VALUE_PARTS = HEAD_DIM / 16;  // 16 columns of V at a time
constexpr int STEPS = (KEYS / 16 + 2 + WARPS - 1) / WARPS;  // of 16 keys, of a warp

// The exchange: two sets of buffers, one for even layers and one for odd ones. Offsets in bytes.
constexpr int AT_X0 = 0;
constexpr int AT_Q = AT_X0 + 2 * ROWS * WIDTH;
constexpr int AT_K = AT_Q + 2 * ROWS * ATTENDED;
constexpr int AT_V = AT_K + 2 * ROWS * HEAD_DIM;
constexpr int AT_Y = AT_V + 2 * ROWS * HEAD_DIM;
constexpr int AT_X1 = AT_Y + 2 * ROWS * ATTENDED;
constexpr int AT_G = AT_X1 + 2 * ROWS * WIDTH;
constexpr int AT_S = AT_G + 2 * ROWS * HIDDEN;
constexpr int SCORE_STEPS = (KEYS + 15) / 16 + 1;
constexpr int SET = AT_S + 64 * HEADS * ROWS * SCORE_STEPS;

// A layer's constants, in floats.
constexpr int AT_SCALE1 = 0;
constexpr int AT_BIAS1 = AT_SCALE1 + WIDTH;
constexpr int AT_GATE1 = AT_BIAS1 + QKV;
constexpr int AT_SCALE2 = AT_GATE1 + WIDTH;
constexpr int AT_BIAS2 = AT_SCALE2 + WIDTH;
constexpr int AT_GATE2 = AT_BIAS2 + 2 * HIDDEN;
constexpr int CONSTANTS = AT_GATE2 + WIDTH;
constexpr int AT_ROW_O = QKV;  // and of the scales of E4M3 rows
constexpr int AT_ROW_GATE_UP = AT_ROW_O + WIDTH;
constexpr int AT_ROW_DOWN = AT_ROW_GATE_UP + 2 * HIDDEN;
constexpr int ROW_SCALES = AT_ROW_DOWN + WIDTH;

// Shared memory in floats, behind the stream: buffers for the parts of sums, of which no two phases in
// a row use the same; sums of squares and of softmaxes; this block's part of x.
constexpr int VALUES = WARPS * STEPS * 128;  // V's rows on their way to the matrix units, in A
constexpr int PARTS_A =
    larger(WARPS * larger(QKV_GROUP, GATE_UP_GROUP) * ROWS * TILE, VALUES);
constexpr int PARTS_B = WARPS * ROWS * TILE;
constexpr int PARTS_C = 2 * PARTS_B;
constexpr int STATISTICS = ROWS * WARPS;
constexpr int RESIDUAL = OUT_TILES * ROWS * TILE;


constexpr int chunks(int inputs, int tiles) { return inputs / (WARPS * TAKEN) * tiles; }
constexpr int CHUNKS = chunks(WIDTH, QKV_TILES + GATE_UP_TILES) + chunks(ATTENDED + HIDDEN, OUT_TILES);

static_assert(LAYERS % 2 == 0, "buffers change with each layer and must come out even");
static_assert(HEADS * 2 == WARPS && HEAD_DIM == 256, "a warp scores half a head");
static_assert(WIDTH % (WARPS * TAKEN) == 0 && HIDDEN % (WARPS * TAKEN) == 0, "whole chunks");
static_assert((BLOCKS - 1) * OUT_TILES < WIDTH / TILE, "every block is waited for in each layer");
static_assert(ATTENDED % (WARPS * TAKEN) == 0, "whole chunks");
static_assert(ROWS >= 8 && ROWS <= 16, "rows of the matrix units' smallest product");

// --- small things

__device__ inline float low(u32 pair) { return __uint_as_float(pair << 16); }
__device__ inline float high(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

__device__ inline u32 pair_of(float first, float second) {
  u32 pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
}

__device__ inline float exp2_of(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ inline float gelu_tanh(float x) {
  const float u = 1.5957691216057308f * (x + 0.044715f * x * x * x);
  return x / (1.0f + exp2_of(-1.4426950408889634f * u));
}

// c += a * b: 16 rows, 8 columns, 16 inputs.
__device__ inline void multiply(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9},"
      " {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Four 8x8 matrices, each lane giving the address of a row, turned.
__device__ inline void load_turned(u32 (&out)[4], u32 at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(at)
               : "memory");
}

// Two E4M3 in the high bytes of 16 bits each, as bfloat16 times 2^-120: their bits, put in place.
__device__ inline u32 placed(u32 high_bytes) {
  return (high_bytes & 0x80008000u) | ((high_bytes >> 4) & 0x07f007f0u);
}

// --- between blocks

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

// --- the stream of weights

struct Stream {
  const char* from;  // of the block
  u32 next, end;     // what this thread asks for next, and where that ends
  u32 first, last;   // its slots in shared memory
  u32 taken, filled;  // the slot to be taken next, and to be filled next
  u64 policy;

  __device__ inline u32 after(u32 at) const { return at == last ? first : at + SLOT; }

  // The next COUNT chunks, into the slots of those taken last.
  template <int COUNT>
  __device__ inline void ask() {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      if (next < end) {
        asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(filled),
                     "l"(from + next), "l"(policy)
                     : "memory");
        next += SLOT;
      }
      asm volatile("cp.async.commit_group;" ::: "memory");
      filled = after(filled);
    }
  }

  // The next COUNT chunks; whoever takes them asks for as many.
  template <int COUNT>
  __device__ inline void take(uint4 (&chunks)[COUNT]) {
    asm volatile("cp.async.wait_group %0;" ::"n"(DEPTH - COUNT) : "memory");
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                   : "=r"(chunks[i].x), "=r"(chunks[i].y), "=r"(chunks[i].z), "=r"(chunks[i].w)
                   : "r"(taken)
                   : "memory");
      taken = after(taken);
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
        if (j % 2 == 0) multiply(sums[tile], a.x, b.x, a.y, b.y, b0, b1);
        else multiply(odd[tile], a.z, b.z, a.w, b.w, b0, b1);
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

// --- between warps

// A warp's part of the sums of a tile: [warp][tile][row][column].
template <int TILES>
__device__ inline void put_part(float* parts, int warp, int tile, int lane, const float (&sum)[4]) {
  const int row = lane >> 2, column = 2 * (lane & 3);
  float* at = parts + ((warp * TILES + tile) * ROWS + row) * TILE + column;
  *reinterpret_cast<float2*>(at) = make_float2(sum[0], sum[1]);
  if (row + 8 < ROWS) *reinterpret_cast<float2*>(at + 8 * TILE) = make_float2(sum[2], sum[3]);
}

// Two neighbouring columns of a row, made by LANES threads side by side.
template <int TILES, int LANES>
struct Pair {
  static constexpr int PAIRS = TILES * ROWS * (TILE / 2);
  static constexpr int ROUNDS = (PAIRS * LANES + THREADS - 1) / THREADS;
  int index, lane, tile, row, column;
  bool there;

  __device__ inline Pair(int round) {
    int thread;  // asked for each time: what follows from it is sooner computed than kept
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    const int item = round * THREADS + thread;
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
      out[4 * i] = four.x, out[4 * i + 1] = four.y, out[4 * i + 2] = four.z, out[4 * i + 3] = four.w;
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

#if CLOCKS
#define MARK(which)                                                                       \
  if (threadIdx.x == 0)                                                                   \
    clocks[((layer * 6 + phase) * 4 + (which)) * BLOCKS + blockIdx.x] = clock64();
#define PHASE(n) const int phase = n;
#else
#define MARK(which)
#define PHASE(n)
#endif

struct Block {
  Stream stream;
  Patience patience;
  float *parts_a, *parts_b, *parts_c, *squares, *highest, *totals;
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

constexpr int NORMED = WIDTH / WARPS / 32;  // pieces of a row of x that a warp multiplies

// A warp's share of x [ROWS,WIDTH] at `at`, times the norm's scale; and of its rows' squares.
__device__ inline void receive_normed(Block& me, uint4 (&first)[NORMED], uint4 (&second)[NORMED],
                                      const char* at, bool in_panels, const float* scales) {
  const int begin = me.warp * (WIDTH / WARPS) + 8 * me.quarter;
  float4 scale[2 * NORMED];
#pragma unroll
  for (int i = 0; i < NORMED; i++) {
    const float4* from = reinterpret_cast<const float4*>(scales + begin + 32 * i);
    scale[2 * i] = __ldg(from);
    scale[2 * i + 1] = __ldg(from + 1);
  }
  const int from = in_panels ? panel_at(me.row, begin) : 2 * (me.row * WIDTH + begin);
  receive<NORMED>(first, second, at + from, in_panels ? PANEL : 64, in_panels ? 8 * 64 : 16 * WIDTH,
                  me.asks, me.has_second, me.patience);
  float a = 0, b = 0;
  scale_rows<NORMED>(first, scale, a);
  scale_rows<NORMED>(second, scale, b);
  a = Pair<1, 4>::over_lanes(a);
  b = Pair<1, 4>::over_lanes(b);
  if (me.quarter == 0) me.squares[me.row * WARPS + me.warp] = a;
  if (me.quarter == 0 && me.has_second) me.squares[(me.row + 8) * WARPS + me.warp] = b;
}

// The end of a residual block: x += gate * (y @ w.T), for this block's own columns.
template <int K>
__device__ inline void residual_product(Block& me, const char* y, const float* gates,
                                        const float* row_scale, float2* residual, char* to,
                                        bool in_panels, int layer, int phase, long long* clocks) {
  constexpr int PIECES = K / WARPS / 32;
  using Own = Pair<1, 4>;
  static_assert(Own::ROUNDS == 1, "a thread has one pair");
  const Own pair(0);
  uint4 first[PIECES], second[PIECES];
#pragma unroll 1
  for (int tile = 0; tile < OUT_TILES; tile++) {
    const int column = (blockIdx.x * OUT_TILES + tile) * TILE + pair.column;
    float2 gate = make_float2(0, 0);
    if (column < WIDTH) {
      gate = __ldg(reinterpret_cast<const float2*>(gates + column));
      if (FP8) {
        const float2 scale = __ldg(reinterpret_cast<const float2*>(row_scale + column));
        gate.x *= scale.x;
        gate.y *= scale.y;
      }
    }
    if (tile == 0)
      receive<PIECES>(first, second,
                      y + panel_at(me.row, me.warp * (K / WARPS) + 8 * me.quarter), PANEL, 8 * 64,
                      me.asks, me.has_second, me.patience);
    MARK(1)
    me.tiles<1, PIECES>(me.parts_b, first, second);
    MARK(2)
    __syncthreads();
    const float2 sum = pair.sum(me.parts_b);
    if (pair.there && pair.lane == 0 && column < WIDTH) {
      float2& x = residual[tile * ROWS * (TILE / 2) + pair.index];
      const u32 word = pair_of(x.x + gate.x * sum.x, x.y + gate.y * sum.y);
      x = make_float2(low(word), high(word));
      publish(to + (in_panels ? panel_at(pair.row, column) : 2 * (pair.row * WIDTH + column)), word);
    }
    if (tile + 1 < OUT_TILES) __syncthreads();
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    expert_stack(const char* weights, const float* constants, const float* row_scales, char* hidden,
                 char* exchange, const char* keys, const char* values, const int* length_ptr,
                 const float* cosines, const float* sines, float score_scale, u32* failed,
                 long long* clocks) {
  extern __shared__ __align__(16) char shared[];
  const int block = blockIdx.x;

  Block me;
  me.lane = threadIdx.x & 31;
  me.warp = threadIdx.x >> 5;
  me.row = me.lane >> 2;
  me.quarter = me.lane & 3;
  me.asks = me.row == 7;
  me.has_second = me.row + 8 < ROWS;
  me.parts_a = reinterpret_cast<float*>(shared + DEPTH * SLOT);
  me.parts_b = me.parts_a + PARTS_A;
  me.parts_c = me.parts_b + PARTS_B;
  me.squares = me.parts_c + PARTS_C;
  me.highest = me.squares + STATISTICS;
  me.totals = me.highest + STATISTICS;
  float2* residual = reinterpret_cast<float2*>(me.totals + STATISTICS);
  const u32 value_rows = (u32)__cvta_generic_to_shared(me.parts_a);
  me.patience.left = *reinterpret_cast<volatile u32*>(failed) ? 0 : PATIENCE;
  me.patience.failed = failed;

  Stream& stream = me.stream;
  constexpr u32 STREAM = (u32)LAYERS * CHUNKS * SLOT;
  stream.from = weights + (u64)block * STREAM;
  stream.next = 16 * threadIdx.x;
  stream.end = STREAM;
  stream.first = (u32)__cvta_generic_to_shared(shared) + 16 * threadIdx.x;
  // As a register of its own: ptxas of CUDA 13.0 made an instruction that no GPU knows out of an
  // asynchronous copy whose address it had split.
  asm volatile("" : "+r"(stream.first));
  stream.taken = stream.filled = stream.first;
  stream.last = stream.first + (DEPTH - 1) * SLOT;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(stream.policy));
#pragma unroll 1
  for (int i = 0; i < DEPTH; i++) stream.ask<1>();

  const int length = min(*length_ptr, KEYS - ROWS);
  // Keys of the prefix, then those of the actions from a multiple of 16 on.
  const int prefix_tiles = (length + TILE - 1) / TILE;
  const int prefix_steps = (length + 15) / 16;
  constexpr int OWN_TILES = (ROWS + TILE - 1) / TILE;
  const int steps = prefix_steps + 1;  // of 16 keys

  for (int i = threadIdx.x; i < RESIDUAL / 2; i += THREADS) {
    const int tile = i / (ROWS * TILE / 2), inside = i % (ROWS * TILE / 2);
    const int row = inside / (TILE / 2), column = 2 * (inside % (TILE / 2));
    const int at = (block * OUT_TILES + tile) * TILE + column;
    u32 x = 0;
    if (at < WIDTH) x = *reinterpret_cast<const u32*>(hidden + 2 * (row * WIDTH + at));
    residual[i] = make_float2(low(x), high(x));
  }
  __syncthreads();

#pragma unroll 1
  for (int layer = 0; layer < LAYERS; layer++) {
    char* set = exchange + (layer & 1) * SET;
    char* other = exchange + (~layer & 1) * SET;
    const float* of_layer = constants + layer * CONSTANTS;
    const float* rows_of_layer = row_scales + layer * ROW_SCALES;
    const char* old_keys = keys + (u64)layer * KEYS * HEAD_DIM * 2;
    const char* old_values = values + (u64)layer * KEYS * HEAD_DIM * 2;

    {  // x -> queries, and keys and values of the actions
      PHASE(0) MARK(0)
      using Couple = Pair<QKV_GROUP, 4>;  // of columns that RoPE turns
      uint4 first[NORMED], second[NORMED];
#pragma unroll 1
      for (int group = 0; group < QKV_TILES; group += QKV_GROUP) {
        const int begin = (block * QKV_TILES + group) * (TILE / 2);
        float2 bias[Couple::ROUNDS], scale[Couple::ROUNDS], turn[Couple::ROUNDS];
#pragma unroll
        for (int round = 0; round < Couple::ROUNDS; round++) {
          const Couple pair(round);
          const int couple = begin + pair.tile * (TILE / 2) + pair.column / 2;
          const int head = couple / HALF, column = couple % HALF + head * HEAD_DIM;
          bias[round] = scale[round] = make_float2(1, 1);
          turn[round] = make_float2(1, 0);
          if (head < HEADS + 2) {
            bias[round] = make_float2(__ldg(of_layer + AT_BIAS1 + column),
                                      __ldg(of_layer + AT_BIAS1 + column + HALF));
            if (FP8)
              scale[round] = make_float2(__ldg(rows_of_layer + column),
                                         __ldg(rows_of_layer + column + HALF));
          }
          if (head < HEADS + 1) {
            const int at = (length + pair.row) * HALF + couple % HALF;
            turn[round] = make_float2(__ldg(cosines + at), __ldg(sines + at));
          }
        }
        if (group == 0)
          receive_normed(me, first, second, layer == 0 ? hidden : set + AT_X0, layer > 0,
                         of_layer + AT_SCALE1);
        MARK(1)
        me.tiles<QKV_GROUP, NORMED>(me.parts_a, first, second);
        MARK(2)
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
                         ? set + AT_Q + panel_at(pair.row, head * HEAD_DIM + d)
                         : set + (head == HEADS ? AT_K : AT_V) + 2 * (pair.row * HEAD_DIM + d);
            };
            if (pair.lane == 0) publish(place(column), pair_of(a, next_a));
            else publish(place(column + HALF), pair_of(b, next_b));
          }
        }
        if (group + QKV_GROUP < QKV_TILES) __syncthreads();
      }
      MARK(3)
    }

    {  // scores of every head, 8 keys at a time
      PHASE(1) MARK(0)
      const int head = me.warp >> 1, begin = (me.warp & 1) * HALF + 8 * me.quarter;
      const int tiles = prefix_tiles + OWN_TILES;
#pragma unroll 1
      for (int tile = block; tile < tiles; tile += BLOCKS) {
        const bool own = tile >= prefix_tiles;
        const int key = (own ? tile - prefix_tiles : tile) * TILE + me.row;
        const bool there = key < (own ? ROWS : length);
        const char* from = (own ? set + AT_K : old_keys) + 2 * (key * HEAD_DIM + begin);
        uint4 k[4], first[4], second[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
          k[i] = make_uint4(0, 0, 0, 0);
          if (there) k[i] = look(from + 64 * i);
        }
        receive<4>(first, second, set + AT_Q + panel_at(me.row, head * HEAD_DIM + begin), PANEL,
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
        MARK(1)
        float sum[4] = {0, 0, 0, 0}, odd[4] = {0, 0, 0, 0};
#pragma unroll
        for (int i = 0; i < 4; i++) {
          multiply(sum, first[i].x, second[i].x, first[i].y, second[i].y, k[i].x, k[i].y);
          multiply(odd, first[i].z, second[i].z, first[i].w, second[i].w, k[i].z, k[i].w);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) sum[i] += odd[i];
        put_part<1>(me.parts_b, me.warp, 0, me.lane, sum);
        MARK(2)
        __syncthreads();
        constexpr int PAIRS = HEADS * ROWS * (TILE / 2);
        const int begin_key = (own ? tile - prefix_tiles : tile) * TILE;
        const int end_key = own ? ROWS : length;
        const int step = own ? prefix_steps : begin_key / 16;
#pragma unroll
        for (int round = 0; round < (PAIRS + THREADS - 1) / THREADS; round++) {
          const int index = round * THREADS + threadIdx.x;
          if (index < PAIRS) {
            const int of_head = index / (ROWS * TILE / 2), inside = index % (ROWS * TILE / 2);
            const float* at = me.parts_b + 2 * of_head * ROWS * TILE + 2 * inside;
            const int row = inside / (TILE / 2), key = begin_key + 2 * (inside % (TILE / 2));
            const float a = (at[0] + at[ROWS * TILE]) * score_scale;
            const float b = (at[1] + at[ROWS * TILE + 1]) * score_scale;
            const float none = __uint_as_float(0xff800000u);
            publish(set + AT_S + ((of_head * steps + step) * ROWS + row) * 64 + key % 16 * 4,
                    key < end_key ? a : none, key + 1 < end_key ? b : none);
          }
        }
        if (tile + BLOCKS < tiles) __syncthreads();
      }
      if (block >= tiles) __syncthreads();
      MARK(3)
    }

    {  // softmax, and 16 columns of V of one head
      PHASE(2) MARK(0)
#pragma unroll 1
      for (int item = block; item < HEADS * VALUE_PARTS; item += BLOCKS) {
        const int head = item / VALUE_PARTS, column = item % VALUE_PARTS * 16;
        // In a step of 16 keys this lane scores 4, which lie side by side, and brings 8 columns of
        // one of V's rows.
        const int value_key = me.lane >> 1;
        const char* scores =
            set + AT_S + (head * steps * ROWS + me.row) * 64 + 16 * me.quarter;
        const char* own_values = set + AT_V + 2 * (value_key * HEAD_DIM + column + 8 * (me.lane & 1));
        const uint4 none = {0xff800000u, 0xff800000u, 0xff800000u, 0xff800000u};
        const uint4 missing = {ABSENT, ABSENT, ABSENT, ABSENT};
        uint4 v[STEPS], first[STEPS], second[STEPS];
#pragma unroll
        for (int i = 0; i < STEPS; i++) {
          const int step = me.warp + WARPS * i;
          const bool own = step == prefix_steps;
          const int written = own ? OWN_TILES * TILE : prefix_tiles * TILE - 16 * step;
          const bool scored = step < steps && 4 * me.quarter < written;
          first[i] = scored ? missing : none;
          second[i] = scored && me.has_second ? missing : none;
          v[i] = make_uint4(0, 0, 0, 0);
          if (own && value_key < ROWS) v[i] = missing;
          if (!own && 16 * step + value_key < length)
            v[i] = look(old_values + 2 * ((16 * step + value_key) * HEAD_DIM + column +
                                          8 * (me.lane & 1)));
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
        const u32 rows_at = value_rows + me.warp * STEPS * 512;
#pragma unroll
        for (int i = 0; i < STEPS; i++)
          asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(rows_at + i * 512 + 16 * me.lane),
                       "r"(v[i].x), "r"(v[i].y), "r"(v[i].z), "r"(v[i].w)
                       : "memory");
        __syncwarp();
        MARK(1)
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
        MARK(2)
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
            const float2 part = *reinterpret_cast<const float2*>(
                me.parts_c + warp * 2 * ROWS * TILE + 2 * pair.index);
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
            publish(set + AT_Y + panel_at(pair.row, to), pair_of(x * lifted, y * lifted));
          }
        }
        if (item + BLOCKS < HEADS * VALUE_PARTS) __syncthreads();
      }
      if (block >= HEADS * VALUE_PARTS) __syncthreads();
      MARK(3)
    }

    {
      PHASE(3) MARK(0)
      // Everybody is done with the layer before: its buffers become absent again. The warps that
      // do it have less to do here than the others.
      constexpr int BUSY = 8;
      constexpr int HELPERS = THREADS - 32 * BUSY;
      if (me.warp >= BUSY) {
        const int used = (AT_S + HEADS * steps * ROWS * 64) / 16;
        const uint4 clear = {ABSENT, ABSENT, ABSENT, ABSENT};
        for (int i = block * HELPERS + threadIdx.x - 32 * BUSY; i < used; i += BLOCKS * HELPERS)
          reinterpret_cast<uint4*>(other)[i] = clear;
      }
      residual_product<ATTENDED>(me, set + AT_Y, of_layer + AT_GATE1, rows_of_layer + AT_ROW_O,
                                 residual, set + AT_X1, true, layer, 3, clocks);
      // What was cleared is so before anything of this block lets the next layer begin.
      if (me.warp >= BUSY) asm volatile("fence.acq_rel.gpu;" ::: "memory");
      MARK(3)
    }

    {  // x -> gelu(gate) * up
      PHASE(4) MARK(0)
      constexpr int LANES = GATE_UP_GROUP * ROWS * 4 >= 256 ? 1 : 2;
      using Unit = Pair<GATE_UP_GROUP, LANES>;
      uint4 first[NORMED], second[NORMED];
#pragma unroll 1
      for (int group = 0; group < GATE_UP_TILES; group += GATE_UP_GROUP) {
        const int begin = (block * GATE_UP_TILES + group) * (TILE / 2);
        float2 bias[Unit::ROUNDS], scale[Unit::ROUNDS];
#pragma unroll
        for (int round = 0; round < Unit::ROUNDS; round++) {
          const Unit pair(round);
          const int unit = begin + pair.tile * (TILE / 2) + pair.column / 2;
          bias[round] = scale[round] = make_float2(1, 1);
          if (unit < HIDDEN) {
            bias[round] = make_float2(__ldg(of_layer + AT_BIAS2 + unit),
                                      __ldg(of_layer + AT_BIAS2 + HIDDEN + unit));
            if (FP8)
              scale[round] = make_float2(__ldg(rows_of_layer + AT_ROW_GATE_UP + unit),
                                         __ldg(rows_of_layer + AT_ROW_GATE_UP + HIDDEN + unit));
          }
        }
        if (group == 0)
          receive_normed(me, first, second, set + AT_X1, true, of_layer + AT_SCALE2);
        MARK(1)
        me.tiles<GATE_UP_GROUP, NORMED>(me.parts_a, first, second);
        MARK(2)
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
            publish(set + AT_G + panel_at(pair.row, unit), pair_of(value * LIFT, next * LIFT));
        }
        if (group + GATE_UP_GROUP < GATE_UP_TILES) __syncthreads();
      }
      MARK(3)
    }

    {
      PHASE(5) MARK(0)
      const bool last = layer + 1 == LAYERS;
      residual_product<HIDDEN>(me, set + AT_G, of_layer + AT_GATE2, rows_of_layer + AT_ROW_DOWN,
                               residual, last ? hidden : other + AT_X0, !last, layer, 5, clocks);
      MARK(3)
    }
  }
  asm volatile("cp.async.wait_all;" ::: "memory");
}
