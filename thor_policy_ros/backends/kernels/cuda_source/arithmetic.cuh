#pragma once

// Numbers, and the matrix units.

#include "sizes.cuh"

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
