// Attention of an image on Hopper: every token sees all, heads lie side by side in one projection.
//
// A block has 64 tokens of one head, and all keys and values of that head in shared memory, half of
// them for each warpgroup. They lie as the matrix units read them without swizzle, in columns of 8
// (16 bytes a row); queries go to registers at once.
//
// Macros: TOKENS (of an image), HEAD_DIM. `score` and `add_values` are written for them by
// hopper_attention.py.

#include "hopper_attention.cuh"

constexpr int KEYS = TOKENS / GROUPS;  // of a warpgroup
constexpr int PIECES = HEAD_DIM / 8, STEPS = (HEAD_DIM + 15) / 16, FRAGMENTS = PIECES;
constexpr u32 COLUMN = KEYS * PIECE;   // bytes of 8 columns
constexpr u32 KEY_BYTES = 2 * STEPS * COLUMN, VALUE_BYTES = PIECES * COLUMN;

static_assert(TOKENS % 64 == 0 && KEYS <= 128, "weights of a row that registers hold");
static_assert(HEAD_DIM % 8 == 0, "heads of whole pieces");

// Without swizzle. Keys: to the next 8 columns, to the next 8 keys. Values, whose columns are the
// matrix units' N: to the next 8 keys, to the next 8 columns.
__device__ inline u64 plain_descriptor(u32 at, u32 lead, u32 stride) {
  return static_cast<u64>((at & 0x3ffff) >> 4) | (static_cast<u64>(lead >> 4) << 16) |
         (static_cast<u64>(stride >> 4) << 32);
}

__device__ inline void copy_piece(u32 to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

__device__ inline void copies_end() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Copies but for the LEFT groups asked for last are there, for the whole warpgroup.
template <int LEFT>
__device__ inline void copies_wait(int group) {
  asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
  show_to_matrix_units();
  meet(group);
}

// Eight threads copy a piece of eight rows: other banks each. Their neighbours take the pieces
// beside it.
__device__ inline void copy_rows(u32 to, const unsigned short* from, int row_stride) {
  for (int i = place() / 8; i < KEYS / 8 * PIECES; i += 16) {
    const int row = i / PIECES * 8 + place() % 8, piece = i % PIECES;
    copy_piece(to + piece * COLUMN + row * PIECE,
               from + static_cast<long long>(row) * row_stride + piece * 8);
  }
}

// 16 columns of 16 rows, as the matrix units take them.
__device__ inline void load_queries(u32 (&queries)[STEPS][4], const unsigned short* from,
                                    int row_stride) {
  const unsigned short* first = from + static_cast<long long>(first_row()) * row_stride;
#pragma unroll
  for (int step = 0; step < STEPS; step++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int piece = 2 * step + i / 2;
      const unsigned short* at = first + static_cast<long long>(i % 2) * 8 * row_stride;
      queries[step][i] =
          piece < PIECES ? *reinterpret_cast<const u32*>(at + piece * 8 + lane() % 4 * 2) : 0;
    }
}

extern "C" __global__ void __launch_bounds__(128 * GROUPS, 2)
    vision_attention(const unsigned short* qkv, void* out, const float* quantise, int heads,
                     float factor) {
  extern __shared__ __align__(1024) char shared[];
  const int group = threadIdx.x / 128, head = blockIdx.y, image = blockIdx.z;
  const u32 keys = shared_address(shared) + group * (KEY_BYTES + VALUE_BYTES);
  const u32 values = keys + KEY_BYTES;
  if (PIECES % 2 && place() < KEYS)  // columns that a head does not have, and the step does
    asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(keys + PIECES * COLUMN +
                                                                   place() * PIECE),
                 "r"(0)
                 : "memory");
  wait_for_previous();
  let_next_begin();
  const int width = heads * HEAD_DIM, row_stride = 3 * width, token = blockIdx.x * ROWS;
  const unsigned short* of_head =
      qkv + static_cast<long long>(image) * TOKENS * row_stride + head * HEAD_DIM;
  const unsigned short* half = of_head + static_cast<long long>(group * KEYS) * row_stride;
  copy_rows(keys, half + width, row_stride);
  copies_end();
  u32 queries[STEPS][4];
  load_queries(queries, of_head + static_cast<long long>(token) * row_stride, row_stride);
  copy_rows(values, half + 2 * width, row_stride);
  copies_end();

  Rows<FRAGMENTS> rows;
  rows.begin();
  float scores[KEYS / 2];
  copies_wait<1>(group);
  const u64 k = plain_descriptor(keys, COLUMN, 8 * PIECE);
  wgmma_begin();
#pragma unroll
  for (int step = 0; step < STEPS; step++)
    score(scores, queries[step][0], queries[step][1], queries[step][2], queries[step][3],
          k + step * (2 * COLUMN >> 4), step > 0);
  wgmma_commit();
  wgmma_wait<0>();
  hold(scores);
  rows.weigh(scores, factor);
  u32 weights[KEYS / 4];
  pack(weights, scores);
  copies_wait<0>(group);
  const u64 v = plain_descriptor(values, 8 * PIECE, COLUMN);
  hold(rows.sums);
  wgmma_begin();
#pragma unroll
  for (int step = 0; step < KEYS / 16; step++)
    add_values(rows.sums, weights[4 * step], weights[4 * step + 1], weights[4 * step + 2],
               weights[4 * step + 3], v + step * (16 * PIECE >> 4), step > 0);
  wgmma_commit();
  wgmma_wait<0>();
  hold(rows.sums);

  Result result = {out, quantise};
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const long long row = static_cast<long long>(image) * TOKENS + token + first_row() + 8 * i;
    result.row[i] = row * width + head * HEAD_DIM;
    result.inside[i] = true;
  }
  float4* area = reinterpret_cast<float4*>(shared);
  if (group == 0)
    finish<0>(rows, factor, result, area);
  else
    finish<1>(rows, factor, result, area);
}
