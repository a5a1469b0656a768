#pragma once

// What follows from the macros: tiles, buffers, shared memory.

typedef unsigned int u32;
typedef unsigned long long u64;

constexpr int WARPS = 16;
constexpr int THREADS = 32 * WARPS;
constexpr u32 ABSENT = 0xffffffffu;
constexpr int SLOT = 16 * THREADS;    // bytes of a chunk of the stream
constexpr int TAKEN = FP8 ? 64 : 32;  // inputs of a tile's 8 columns in a warp's chunk
constexpr int TILE = 8;               // columns of a tile
constexpr int QKV = (HEADS + 2) * HEAD_DIM;
constexpr int ATTENDED = HEADS * HEAD_DIM;
constexpr int HALF = HEAD_DIM / 2;
constexpr int PANEL = 64 * ROWS;  // bytes of 32 columns of every row
constexpr float EPS = 1e-6f;
// E4M3 in a bfloat16's place is the value times 2^-120: what it is multiplied by makes up for half
// of that beforehand, and sums for the rest.
constexpr float LIFT = FP8 ? 0x1p60f : 1.0f;
constexpr u32 PATIENCE = 1u << 23;  // unsuccessful looks, seconds, before a thread gives up

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
constexpr int VALUE_PARTS = HEAD_DIM / 16;                  // 16 columns of V at a time
constexpr int STEPS = (KEYS / 16 + 2 + WARPS - 1) / WARPS;  // of 16 keys, of a warp

// The exchange: two sets of buffers, one for even layers and one for odd ones. Offsets in bytes.
constexpr int AT_X0 = 0;
constexpr int AT_Q = AT_X0 + 2 * ROWS * WIDTH;
constexpr int AT_K = AT_Q + 2 * ROWS * ATTENDED;
constexpr int AT_V = AT_K + 2 * ROWS * HEAD_DIM;
constexpr int AT_Y = AT_V + 2 * ROWS * HEAD_DIM;
constexpr int AT_X1 = AT_Y + 2 * ROWS * ATTENDED;
constexpr int AT_G = AT_X1 + 2 * ROWS * WIDTH;
constexpr int AT_LAST = AT_G + 2 * ROWS * HIDDEN;       // what the last layer makes of x
constexpr int AT_ACTIONS = AT_LAST + 2 * ROWS * WIDTH;  // x_t, which the next step begins with
constexpr int AT_S = AT_ACTIONS + 4 * ROWS * ACTIONS;
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

// Shared memory in floats, behind the stream: buffers for the parts of sums, of which no two phases
// in a row use the same; sums of squares and of softmaxes; this block's part of x.
constexpr int VALUES = WARPS * STEPS * 128;  // V's rows on their way to the matrix units, in A
constexpr int PARTS_A = larger(WARPS * larger(QKV_GROUP, GATE_UP_GROUP) * ROWS * TILE, VALUES);
constexpr int PARTS_B = WARPS * ROWS * TILE;
constexpr int PARTS_C = 2 * PARTS_B;
constexpr int STATISTICS = ROWS * WARPS;
constexpr int RESIDUAL = OUT_TILES * ROWS * TILE;

constexpr int chunks(int inputs, int tiles) { return inputs / (WARPS * TAKEN) * tiles; }
constexpr int CHUNKS =
    chunks(WIDTH, QKV_TILES + GATE_UP_TILES) + chunks(ATTENDED + HIDDEN, OUT_TILES);
constexpr u32 STREAM = (u32)LAYERS * CHUNKS * SLOT;  // bytes of a block

static_assert(2 * SET == EXCHANGE, "the plan's bytes");
static_assert(4 * (PARTS_A + PARTS_B + PARTS_C + 3 * STATISTICS + RESIDUAL) + DEPTH * SLOT == SHARED,
              "the plan's bytes");
static_assert(LAYERS * CONSTANTS + 2 * WIDTH == ROW, "the plan's floats");
static_assert(LAYERS % 2 == 0, "buffers change with each layer and must come out even");
static_assert(HEADS * 2 == WARPS && HEAD_DIM == 256, "a warp scores half a head");
static_assert(WIDTH % (WARPS * TAKEN) == 0 && HIDDEN % (WARPS * TAKEN) == 0, "whole chunks");
static_assert((BLOCKS - 1) * OUT_TILES < WIDTH / TILE, "every block is waited for in each layer");
static_assert(ATTENDED % (WARPS * TAKEN) == 0, "whole chunks");
static_assert(ACTIONS % 16 == 0 && WIDTH % 256 == 0, "whole loads at both ends of a step");
static_assert(ROWS >= 8 && ROWS <= 16, "rows of the matrix units' smallest product");
