// All denoise steps of a chunk through pi0.5's action expert, in one launch (expert_stack.py).
//
// With ten rows a layer is a few megabytes of weights and next to no arithmetic: what counts is
// that weights never stop coming, and how long a value takes from the block that makes it to the
// blocks that read it. So every multiprocessor holds one block for all steps, and
//
// - each thread streams its own share of all weights through shared memory, in the order in which
//   it multiplies them, step after step: nobody else reads them, so nobody waits for anybody;
// - activations pass from block to block through buffers whose words are ABSENT until they are
//   written: a reader asks for the data itself until it is there. No barrier, no flag, no fence.
//   ABSENT is a NaN that no conversion produces. A layer clears the buffers of the layer before it:
//   whoever has received a layer's input knows that everybody is done with the last layer's.
//
// Six phases a layer: qkv, scores, values, o, gate-up, down. In each, the sum over K is shared by
// the 16 warps, whose parts meet in shared memory (one barrier of the block a phase). Two more lie
// between the last layer of a step and the first one of the next: x_t's step, and its embedding.
//
// What these two hand on is cleared with the rest. The embedding goes where every layer finds its
// x, in the even set, absent since the last layer cleared it. What the last layer leaves and x_t
// lie in the odd set, which the first layer clears once its block has every block's part of the
// embedding: by then every block has read all of x_t, and whoever made x_t had read what the last
// layer left. The noise goes the way of an x_t, from the host's memory, where the result goes too.
//
// All blocks ask the L2 cache for the same activations at once, which takes as much of it as the
// weights do. So they lie as warps read them, all rows of 32 columns in one run (a panel); and who
// waits asks for one row alone, until that is there.
//
// Given as macros: ROWS (8 to 16), WIDTH, HEADS, HEAD_DIM, HIDDEN, LAYERS (even), BLOCKS, GROUP
// (tiles between two barriers, at the most), DEPTH (of the stream, 4 at the least), KEYS (rows of
// the K,V buffers), ACTIONS (columns of x_t), FP8 (0 or 1: E4M3 weights with a scale for each row);
// and to be compared with what follows from these: EXCHANGE and SHARED (bytes), ROW (floats of a
// step's constants).

#include "attention.cuh"
#include "ends.cuh"
#include "products.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    expert_stack(const char* weights, const float* constants, const float* row_scales,
                 char* exchange, const char* keys, const char* values, const int* length_ptr,
                 const float* cosines, const float* sines, float score_scale, const float* noise,
                 float* actions, float* result, const float* target, const float* gains,
                 const float* into, const float* into_bias, const float* out, const float* out_bias,
                 int steps, float dt, u32* failed, long long* clocks) {
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
  me.residual = reinterpret_cast<float2*>(me.totals + STATISTICS);
  me.value_rows = (u32)__cvta_generic_to_shared(me.parts_a);
  me.patience.left = *reinterpret_cast<volatile u32*>(failed) ? 0 : PATIENCE;
  me.patience.failed = failed;

  Stream& stream = me.stream;
  stream.from = weights + (u64)block * STREAM;
  stream.next = 16 * threadIdx.x;
  stream.left = (u32)steps * LAYERS * CHUNKS;
  stream.first = (u32)__cvta_generic_to_shared(shared) + 16 * threadIdx.x;
  // As a register of its own: ptxas of CUDA 13.0 made an instruction that no GPU knows out of an
  // asynchronous copy whose address it had split.
  asm volatile("" : "+r"(stream.first));
  stream.slot = stream.first;
  stream.last = stream.first + (DEPTH - 1) * SLOT;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(stream.policy));
#pragma unroll 1
  for (int i = 0; i < DEPTH; i++) stream.ask<1>();

  Layer layer;
  layer.cosines = cosines;
  layer.sines = sines;
  layer.score_scale = score_scale;
  layer.length = min(*length_ptr, KEYS - ROWS);
  layer.clocks = clocks;
  layer.constants = constants;
  const Ends ends{into, into_bias, out, out_bias, target, noise, actions, result};
  char* const x_t = exchange + SET + AT_ACTIONS;

  begin_flow(me, ends, x_t);
#pragma unroll 1
  while (true) {  // the stream counts the steps, which saves the register that would be spilled
    if (stream.steps_to_come() == 0) break;
    embed_actions(me, ends, x_t, exchange + AT_X0);
#pragma unroll 1
    for (layer.index = 0; layer.index < LAYERS; layer.index++) {
      layer.set = exchange + (layer.index & 1) * SET;
      layer.other = exchange + (~layer.index & 1) * SET;
      layer.row_scales = row_scales + layer.index * ROW_SCALES;
      layer.keys = keys + (u64)layer.index * KEYS * HEAD_DIM * 2;
      layer.values = values + (u64)layer.index * KEYS * HEAD_DIM * 2;
      queries_keys_values(me, layer);
      attention_scores(me, layer);
      attended_values(me, layer);
      output_projection(me, layer);
      gate_and_up(me, layer);
      down_projection(me, layer);
      layer.constants += CONSTANTS;
    }
    const int behind = stream.steps_to_come(), step = steps - 1 - behind;
    euler_step(me, ends, layer.constants, gains + step * ROWS, 1.0f - step * dt, dt,
               exchange + SET + AT_LAST, behind > 0 ? x_t : nullptr);
    layer.constants += 2 * WIDTH;  // of the final norm
  }
  asm volatile("cp.async.wait_all;" ::: "memory");
}
