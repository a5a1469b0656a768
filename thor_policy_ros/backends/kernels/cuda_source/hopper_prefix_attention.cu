// Attention of a prefix on Hopper: query heads that share one kv head, over the first `length` keys.
//
// A row is a query head of a token; a block has 64 of them. One thread has tiles of keys and values
// brought to shared memory, swizzled by 128 bytes; two warpgroups take them in turns, each with a
// softmax of its own. While one weighs its scores the other multiplies.
//
// Head dim 256. Macros: KEYS (of a tile), SLOTS (tiles of keys or values in shared memory, 2 at the
// least for each warpgroup). `score` and `add_values` are written for KEYS by hopper_attention.py.

#include "hopper_attention.cuh"

constexpr int HEAD_DIM = 256, FRAGMENTS = HEAD_DIM / 8;
constexpr int PANELS = HEAD_DIM * 2 / 128;  // of 128 bytes of each row
constexpr u32 QUERY_BYTES = ROWS * HEAD_DIM * 2, TILE_BYTES = KEYS * HEAD_DIM * 2;
constexpr u32 QUERY_PANEL = ROWS * 128, PANEL = KEYS * 128;

static_assert(KEYS % 16 == 0, "keys in steps of the matrix units");
static_assert(EXCHANGED<FRAGMENTS> <= SLOTS * TILE_BYTES, "sums meet where tiles were");

// All panels of some rows.
__device__ inline void bring_rows(const TensorMap& map, u32 to, u32 barrier, int row) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0],"
      " [%1, {%4, %3, %4}], [%2];" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(row), "r"(0)
      : "memory");
}

// Columns are the matrix units' N and contiguous: the first stride leads to the next 64 columns,
// the second to the next 8 keys.
__device__ inline u64 values_descriptor(u32 at) {
  return static_cast<u64>((at & 0x3ffff) >> 4) | (static_cast<u64>(PANEL >> 4) << 16) |
         (64ull << 32) | (1ull << 62);
}

// Tiles come in rounds of four: keys for both warpgroups, values for both.
struct Ring {
  u32 tiles, full, empty;

  __device__ inline u32 keys_of(int turn, int group) const { return 4 * turn + group; }
  __device__ inline u32 values_of(int turn, int group) const { return 4 * turn + 2 + group; }
  __device__ inline u32 tile(u32 index) const { return tiles + index % SLOTS * TILE_BYTES; }
  __device__ inline u32 full_of(u32 index) const { return full + index % SLOTS * 8; }
  __device__ inline u32 empty_of(u32 index) const { return empty + index % SLOTS * 8; }
  __device__ inline u32 parity(u32 index) const { return index / SLOTS & 1; }

  __device__ inline void bring(const TensorMap& map, u32 index, int row) const {
    barrier_wait(empty_of(index), parity(index) ^ 1);
    barrier_expect(full_of(index), TILE_BYTES);
    bring_rows(map, tile(index), full_of(index), row);
  }

  __device__ inline void wait(u32 index) const { barrier_wait(full_of(index), parity(index)); }

  __device__ inline void release(u32 index) const {
    if (place() == 0) barrier_arrive(empty_of(index));
  }
};

__device__ inline void bring_all(const Ring& ring, const TensorMap& keys, const TensorMap& values,
                                 int tiles) {
  for (int turn = 0; GROUPS * turn < tiles; turn++) {
    const int here = min(GROUPS, tiles - GROUPS * turn);
    for (int group = 0; group < here; group++)
      ring.bring(keys, ring.keys_of(turn, group), (GROUPS * turn + group) * KEYS);
    for (int group = 0; group < here; group++)
      ring.bring(values, ring.values_of(turn, group), (GROUPS * turn + group) * KEYS);
  }
}

__device__ inline void hide_from(float (&scores)[KEYS / 2], int seen) {
#pragma unroll
  for (int i = 0; i < KEYS / 2; i++) {
    const int key = i / 4 * 8 + lane() % 4 * 2 + i % 2;
    if (key >= seen) scores[i] = NOTHING;
  }
}

// Whatever lies behind the last key, its weight is 0: and NaN times 0 is no 0.
__device__ inline void clear_from(u32 tile, int seen, int group) {
  const int pieces = (KEYS - seen) * 8;
  for (int i = place(); i < pieces * PANELS; i += 128) {
    const u32 at = tile + i / pieces * PANEL + seen * 128 + i % pieces * 16;
    asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(at), "r"(0) : "memory");
  }
  show_to_matrix_units();
  meet(group);
}

__device__ inline void begin_scores(float (&scores)[KEYS / 2], u64 queries, u64 keys) {
  wgmma_begin();
#pragma unroll
  for (int step = 0; step < HEAD_DIM / 16; step++)
    score(scores, queries + step / 4 * (QUERY_PANEL >> 4) + step % 4 * 2,
          keys + step / 4 * (PANEL >> 4) + step % 4 * 2, step > 0);
  wgmma_commit();
}

__device__ inline void begin_values(Rows<FRAGMENTS>& rows, const u32 (&weights)[KEYS / 4],
                                    u64 values) {
  wgmma_begin();
#pragma unroll
  for (int step = 0; step < KEYS / 16; step++)
    add_values(rows.sums, weights[4 * step], weights[4 * step + 1], weights[4 * step + 2],
               weights[4 * step + 3], values + step * (16 * 128 >> 4), 1);
  wgmma_commit();
}

template <int GROUP>
__device__ inline void multiply_all(const Ring& ring, u32 queries, int length, float factor,
                                    Rows<FRAGMENTS>& rows) {
  const u64 q = matrix_descriptor(queries);
  int seen = length - GROUP * KEYS;  // of the keys from this turn's first on
  if (seen <= 0) return;
  float scores[KEYS / 2];
  u32 weights[KEYS / 4];
  ring.wait(ring.keys_of(0, GROUP));
  begin_scores(scores, q, matrix_descriptor(ring.tile(ring.keys_of(0, GROUP))));
  wgmma_wait<0>();
  hold(scores);
  ring.release(ring.keys_of(0, GROUP));
#pragma unroll 1
  for (int turn = 0;; turn++) {
    const u32 values = ring.values_of(turn, GROUP), next = ring.keys_of(turn + 1, GROUP);
    const bool last = seen <= GROUPS * KEYS;
    if (seen < KEYS) hide_from(scores, seen);
    rows.weigh(scores, factor);
    pack(weights, scores);
    ring.wait(values);
    if (seen < KEYS) clear_from(ring.tile(values), seen, GROUP);
    hold(rows.sums);
    begin_values(rows, weights, values_descriptor(ring.tile(values)));
    if (last) break;
    ring.wait(next);
    begin_scores(scores, q, matrix_descriptor(ring.tile(next)));
    wgmma_wait<1>();
    hold(rows.sums);
    hold(weights);
    ring.release(values);
    wgmma_wait<0>();
    hold(scores);
    ring.release(next);
    seen -= GROUPS * KEYS;
  }
  wgmma_wait<0>();
  hold(rows.sums);
}

template <int GROUP>
__device__ inline void attend(const Ring& ring, u32 queries, int length, float factor,
                              const Result& result, char* area) {
  Rows<FRAGMENTS> rows;
  rows.begin();
  multiply_all<GROUP>(ring, queries, length, factor, rows);
  finish<GROUP>(rows, factor, result, reinterpret_cast<float4*>(area));
}

extern "C" __global__ void __launch_bounds__(128 * (GROUPS + 1), 1)
    prefix_attention(const __grid_constant__ TensorMap query_map,
                     const __grid_constant__ TensorMap key_map,
                     const __grid_constant__ TensorMap value_map, void* out, const float* quantise,
                     const int* length_ptr, int capacity, int rows_there, float factor) {
  extern __shared__ __align__(1024) char shared[];
  __shared__ u64 barriers[2 * SLOTS + 1];
  const u32 queries = shared_address(shared), queries_full = shared_address(barriers + 2 * SLOTS);
  const Ring ring = {queries + QUERY_BYTES, shared_address(barriers),
                     shared_address(barriers + SLOTS)};
  if (threadIdx.x == 0) {
    for (u32 i = 0; i < SLOTS; i++) {
      barrier_init(ring.full_of(i), 1);
      barrier_init(ring.empty_of(i), 1);
    }
    barrier_init(queries_full, 1);
    publish_barriers();
  }
  __syncthreads();
  wait_for_previous();
  let_next_begin();
  const int first = blockIdx.x * ROWS, length = min(*length_ptr, capacity);
  const int group = threadIdx.x / 128;
  if (group == GROUPS) {
    fewer_registers<24>();
    if (place() == 0) {
      barrier_expect(queries_full, QUERY_BYTES);
      bring_rows(query_map, queries, queries_full, first);
      bring_all(ring, key_map, value_map, (length + KEYS - 1) / KEYS);
    }
  } else {
    more_registers<240>();
    barrier_wait(queries_full, 0);
    Result result = {out, quantise};
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int row = first + first_row() + 8 * half;
      result.row[half] = static_cast<long long>(row) * HEAD_DIM;
      result.inside[half] = row < rows_there;
    }
    if (group == 0)
      attend<0>(ring, queries, length, factor, result, shared + QUERY_BYTES);
    else
      attend<1>(ring, queries, length, factor, result, shared + QUERY_BYTES);
  }
}
