// Attention in double precision on the GPU, forward and backward, with every feature of the contract: the
// oracle for sizes that the CPU's reference is too slow for. It shares no code with the kernels and is itself
// checked against that reference (oracle_test.cu). The same code with `plain` rounds every step to the
// problem's dtype (operands of products to tf32 for f32): the naive form of flash-attn's rule.
//
// One block computes one row (forward, dq) or one key (dk, dv); nothing is tuned.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/cuda/device.h"
#include "tessera/attention.h"

namespace tessera::attention::oracle {

constexpr int kThreads = 128;

// What row statistics and gradients go through; all on the device. Row r of head h of batch b: [b][h][r] with
// rows of the longest sequence; o and gradients contiguous in the shapes of their tensors, in double.
struct Buffers {
  double *maximum = nullptr, *sum = nullptr, *delta = nullptr;
  double *o = nullptr, *lse = nullptr;  // lse like ForwardTensors'
  double *dq = nullptr, *dk = nullptr, *dv = nullptr;
};

struct Inputs {
  AttentionProblem p;
  Strided<const void*> q, k, v, dout;
  bool plain;
};

struct Place {
  int64_t axis, first_row, first_key, rows, length, keys;
};

__device__ inline Place place_of(const AttentionProblem& p, int64_t batch) {
  Place at{batch, 0, 0, p.seqlen_q, p.seqlen_k, 0};
  if (p.cu_seqlens_q != nullptr) {
    at = {0, p.cu_seqlens_q[batch], p.cu_seqlens_k[batch], 0, 0, 0};
    at.rows = p.cu_seqlens_q[batch + 1] - at.first_row;
    at.length = p.cu_seqlens_k[batch + 1] - at.first_key;
  }
  at.keys = p.seqused_k != nullptr ? p.seqused_k[batch] : at.length;
  return at;
}

__device__ inline double widen(DType type, const void* data, int64_t at) {
  if (type == DType::f32) return static_cast<const float*>(data)[at];
  const uint32_t bits = static_cast<const uint16_t*>(data)[at];
  if (type == DType::bf16) return __uint_as_float(bits << 16);
  const int exponent = static_cast<int>(bits >> 10 & 31), fraction = static_cast<int>(bits & 1023);
  const double sign = bits >> 15 != 0 ? -1.0 : 1.0;
  if (exponent == 31) return fraction != 0 ? nan("") : sign * INFINITY;
  return exponent == 0 ? sign * ldexp(static_cast<double>(fraction), -24)
                       : sign * ldexp(1024.0 + fraction, exponent - 25);
}

// To the nearest number with `bits` bits of fraction behind the leading one.
__device__ inline double round_bits(double x, int bits) {
  if (x == 0 || !isfinite(x)) return x;
  int exponent;
  frexp(x, &exponent);
  const double unit = ldexp(1.0, exponent - 1 - bits);
  return rint(x / unit) * unit;
}

struct Rounding {
  bool on;
  DType type;
  __device__ double value(double x) const {  // what a tensor of the dtype holds
    if (!on || type == DType::f32) return x;
    return type == DType::bf16 ? round_bits(x, 7)
           : fabs(x) < 0x1p-14 ? rint(x * 0x1p24) * 0x1p-24
                               : round_bits(x, 10);
  }
  __device__ double operand(double x) const {  // what a product takes
    return on && type == DType::f32 ? round_bits(x, 10) : value(x);
  }
};

struct Element {
  bool seen;
  double score, slope, factor;
};

__device__ inline void philox(uint32_t (&c)[4], uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{c[0]} * 0xD2511F53u, b = uint64_t{c[2]} * 0xCD9E8D57u;
    const uint32_t next[4] = {static_cast<uint32_t>(b >> 32) ^ c[1] ^ key0, static_cast<uint32_t>(b),
                              static_cast<uint32_t>(a >> 32) ^ c[3] ^ key1, static_cast<uint32_t>(a)};
    for (int i = 0; i < 4; ++i) c[i] = next[i];
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

__device__ inline double keep_factor(const Dropout& d, int64_t batch, int64_t head, int64_t row,
                                     int64_t key) {
  if (d.p == 0) return 1;
  uint32_t sub[4] = {static_cast<uint32_t>(d.offset), static_cast<uint32_t>(d.offset >> 32), 0x64726f70u, 0};
  philox(sub, static_cast<uint32_t>(d.seed), static_cast<uint32_t>(d.seed >> 32));
  const int64_t column = d.col0 + key;
  uint32_t random[4] = {static_cast<uint32_t>(column / 16), static_cast<uint32_t>(d.row0 + row),
                        static_cast<uint32_t>(d.head0 + head), static_cast<uint32_t>(d.batch0 + batch)};
  philox(random, sub[0], sub[1]);
  const int kept = static_cast<int>((1.0f - d.p) * 256.0f + 0.5f);
  const int threshold = kept < 1 ? 0 : kept > 256 ? 255 : kept - 1;
  const int byte = static_cast<int>(random[column % 16 / 4] >> (8 * (column % 4)) & 255);
  return byte <= threshold ? 256.0 / (threshold + 1) : 0.0;
}

// Everything about (row, key) but the dot product.
__device__ inline Element element(const AttentionProblem& p, const Place& at, int64_t batch, int64_t head,
                                  int64_t row, int64_t key, double dot, const Rounding& r) {
  Element e{false, 0, 0, 0};
  if (p.leftpad_k != nullptr && key < p.leftpad_k[batch]) return e;
  const MaskTensor& m = p.mask.tensor;
  double added = 0;
  if (m.kind != MaskKind::none) {
    const int64_t offset =
        batch * m.batch_stride + head * m.head_stride + row * m.row_stride + key * m.key_stride;
    if (m.kind == MaskKind::boolean) {
      if (static_cast<const uint8_t*>(m.data)[offset] == 0) return e;
    } else {
      added = widen(m.dtype, m.data, offset);
      if (added < -5e29) return e;
    }
  }
  const Ancestors& tree = p.mask.ancestors;
  const int64_t root = at.keys - tree.tree_keys;
  const auto position = [&](int64_t slot) {
    if (tree.tree_keys == 0 || slot < root || tree.depth == nullptr) return slot;
    return root + tree.depth[batch * tree.tree_keys + slot - root];
  };
  const int64_t i = position(row + at.keys - at.rows), j = position(key);
  if (tree.tree_keys > 0 && key >= root) {
    const int64_t node = key - root, words = (tree.tree_keys + 63) / 64;
    if ((tree.bits[(batch * p.seqlen_q + row) * words + node / 64] >> (node % 64) & 1) == 0) return e;
  } else if ((p.mask.causal && key > i) || (p.mask.window_left >= 0 && key < i - p.mask.window_left) ||
             (p.mask.window_right >= 0 && key > i + p.mask.window_right)) {
    return e;
  }
  e.seen = true;
  e.score = r.value(double{p.scale} * dot);
  e.slope = p.scale;
  if (p.softcap > 0) {
    const double t = r.value(tanh(r.value(e.score / p.softcap)));
    e.score = r.value(p.softcap * t);
    e.slope *= 1 - t * t;
  }
  if (p.alibi_slopes != nullptr) {
    e.score -= double{p.alibi_slopes[batch * p.alibi_batch_stride + head]} *
               static_cast<double>(i < j ? j - i : i - j);
  }
  e.score = r.value(e.score + added);
  e.factor = keep_factor(p.dropout, batch, head, row, key);
  return e;
}

__device__ inline double block_max(double x, double* shared) {
  shared[threadIdx.x] = x;
  __syncthreads();
  for (int n = kThreads / 2; n > 0; n /= 2) {
    if (threadIdx.x < n) shared[threadIdx.x] = fmax(shared[threadIdx.x], shared[threadIdx.x + n]);
    __syncthreads();
  }
  const double result = shared[0];
  __syncthreads();
  return result;
}
__device__ inline double block_sum(double x, double* shared) {
  shared[threadIdx.x] = x;
  __syncthreads();
  for (int n = kThreads / 2; n > 0; n /= 2) {
    if (threadIdx.x < n) shared[threadIdx.x] += shared[threadIdx.x + n];
    __syncthreads();
  }
  const double result = shared[0];
  __syncthreads();
  return result;
}

__device__ inline double dot_of(const Inputs& in, const Strided<const void*>& a, int64_t row_a,
                                int64_t head_a, const Strided<const void*>& b, int64_t row_b, int64_t head_b,
                                int64_t axis, int dim, const Rounding& r) {
  const int64_t from_a = axis * a.batch_stride + row_a * a.row_stride + head_a * a.head_stride;
  const int64_t from_b = axis * b.batch_stride + row_b * b.row_stride + head_b * b.head_stride;
  double sum = 0;
  for (int d = 0; d < dim; ++d) {
    sum +=
        r.operand(widen(in.p.dtype, a.data, from_a + d)) * r.operand(widen(in.p.dtype, b.data, from_b + d));
  }
  return sum;
}

// One row of one head: statistics, o, lse; with dout delta and dq too.
__global__ void row_kernel(Inputs in, Buffers out) {
  __shared__ double shared[kThreads], weight[kThreads];
  const AttentionProblem& p = in.p;
  const int64_t row = blockIdx.x, head = blockIdx.y, batch = blockIdx.z;
  const Place at = place_of(p, batch);
  if (row >= at.rows) return;
  const Rounding r{in.plain, p.dtype};
  const int64_t kv_head = head / (p.heads / p.kv_heads), of = at.first_row + row;
  const auto element_of = [&](int64_t key) {
    return element(p, at, batch, head, row, key,
                   dot_of(in, in.q, of, head, in.k, at.first_key + key, kv_head, at.axis, p.head_dim, r), r);
  };
  double top = -INFINITY;
  for (int64_t key = threadIdx.x; key < at.keys; key += kThreads) {
    const Element e = element_of(key);
    if (e.seen) top = fmax(top, e.score);
  }
  top = block_max(top, shared);
  double sum = 0;
  for (int64_t key = threadIdx.x; key < at.keys && top != -INFINITY; key += kThreads) {
    const Element e = element_of(key);
    if (e.seen) sum += exp(e.score - top);
  }
  sum = block_sum(sum, shared);
  const int64_t index = (batch * p.heads + head) * p.seqlen_q + row;
  const int64_t all = p.cu_seqlens_q != nullptr ? p.cu_seqlens_q[p.batch] : p.seqlen_q;
  if (threadIdx.x == 0) {
    out.maximum[index] = top;
    out.sum[index] = sum;
    out.lse[(at.axis * p.heads + head) * all + of] = top == -INFINITY ? top : top + log(sum);
  }
  // Sum of weight[key] * row of `values`, of all keys, into `to`. At most 256 dimensions: two a thread.
  const auto accumulate = [&](const Strided<const void*>& values, int dim, auto&& weight_of, double* to) {
    double total[2] = {0, 0};
    for (int64_t first = 0; first < at.keys; first += kThreads) {
      const int64_t key = first + threadIdx.x;
      weight[threadIdx.x] = key < at.keys ? weight_of(key) : 0.0;
      __syncthreads();
      for (int i = 0; i < kThreads && first + i < at.keys; ++i) {
        if (weight[i] == 0) continue;
        const int64_t from = at.axis * values.batch_stride + (at.first_key + first + i) * values.row_stride +
                             kv_head * values.head_stride;
        for (int part = 0; part < 2; ++part) {
          const int d = static_cast<int>(threadIdx.x) + part * kThreads;
          if (d < dim) total[part] += weight[i] * r.operand(widen(p.dtype, values.data, from + d));
        }
      }
      __syncthreads();
    }
    for (int part = 0; part < 2; ++part) {
      const int d = static_cast<int>(threadIdx.x) + part * kThreads;
      if (d < dim) to[((at.axis * all + of) * p.heads + head) * dim + d] = r.value(total[part]);
    }
  };
  const auto probability = [&](const Element& e) {
    return e.seen ? r.operand(exp(e.score - top) / sum) : 0.0;
  };
  accumulate(
      in.v, p.v_head_dim,
      [&](int64_t key) {
        const Element e = element_of(key);
        return e.seen ? probability(e) * e.factor : 0.0;
      },
      out.o);
  if (in.dout.data == nullptr) return;
  const auto gradient = [&](int64_t key, const Element& e) {
    return r.value(
        r.value(dot_of(in, in.dout, of, head, in.v, at.first_key + key, kv_head, at.axis, p.v_head_dim, r)) *
        e.factor);
  };
  double delta = 0;
  for (int64_t key = threadIdx.x; key < at.keys; key += kThreads) {
    const Element e = element_of(key);
    if (e.seen) delta += probability(e) * gradient(key, e);
  }
  delta = block_sum(delta, shared);
  if (threadIdx.x == 0) out.delta[index] = delta;
  accumulate(
      in.k, p.head_dim,
      [&](int64_t key) {
        const Element e = element_of(key);
        return e.seen ? r.operand(r.value(probability(e) * (gradient(key, e) - delta)) * e.slope) : 0.0;
      },
      out.dq);
}

// dk and dv of one key, from the rows' statistics.
__global__ void key_kernel(Inputs in, Buffers out) {
  __shared__ double p_weight[kThreads], ds_weight[kThreads];
  const AttentionProblem& p = in.p;
  const int64_t key = blockIdx.x, kv_head = blockIdx.y, batch = blockIdx.z;
  const Place at = place_of(p, batch);
  if (key >= at.length) return;
  const Rounding r{in.plain, p.dtype};
  const int64_t group = p.heads / p.kv_heads, of = at.first_key + key;
  double dk[2] = {0, 0}, dv[2] = {0, 0};
  for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    double part_k[2] = {0, 0}, part_v[2] = {0, 0};
    for (int64_t first = 0; first < at.rows && key < at.keys; first += kThreads) {
      const int64_t row = first + threadIdx.x;
      double x = 0, ds = 0;
      if (row < at.rows) {
        const int64_t index = (batch * p.heads + head) * p.seqlen_q + row;
        const Element e =
            element(p, at, batch, head, row, key,
                    dot_of(in, in.q, at.first_row + row, head, in.k, of, kv_head, at.axis, p.head_dim, r), r);
        if (e.seen) {
          x = r.operand(exp(e.score - out.maximum[index]) / out.sum[index]);
          const double dp = r.value(r.value(dot_of(in, in.dout, at.first_row + row, head, in.v, of, kv_head,
                                                   at.axis, p.v_head_dim, r)) *
                                    e.factor);
          ds = r.operand(r.value(x * (dp - out.delta[index])) * e.slope);
          x *= e.factor;
        }
      }
      p_weight[threadIdx.x] = x;
      ds_weight[threadIdx.x] = ds;
      __syncthreads();
      for (int i = 0; i < kThreads && first + i < at.rows; ++i) {
        if (p_weight[i] == 0 && ds_weight[i] == 0) continue;
        const int64_t from = at.first_row + first + i;
        for (int part = 0; part < 2; ++part) {
          const int d = static_cast<int>(threadIdx.x) + part * kThreads;
          if (d < p.head_dim) {
            part_k[part] +=
                ds_weight[i] * r.operand(widen(p.dtype, in.q.data,
                                               at.axis * in.q.batch_stride + from * in.q.row_stride +
                                                   head * in.q.head_stride + d));
          }
          if (d < p.v_head_dim) {
            part_v[part] +=
                p_weight[i] * r.operand(widen(p.dtype, in.dout.data,
                                              at.axis * in.dout.batch_stride + from * in.dout.row_stride +
                                                  head * in.dout.head_stride + d));
          }
        }
      }
      __syncthreads();
    }
    for (int part = 0; part < 2; ++part) {
      dk[part] = r.value(dk[part] + r.value(part_k[part]));
      dv[part] = r.value(dv[part] + r.value(part_v[part]));
    }
  }
  const int64_t all = p.cu_seqlens_k != nullptr ? p.cu_seqlens_k[p.batch] : p.seqlen_k;
  for (int part = 0; part < 2; ++part) {
    const int d = static_cast<int>(threadIdx.x) + part * kThreads;
    const int64_t row = (at.axis * all + of) * p.kv_heads + kv_head;
    if (d < p.head_dim) out.dk[row * p.head_dim + d] = dk[part];
    if (d < p.v_head_dim) out.dv[row * p.v_head_dim + d] = dv[part];
  }
}

// o and lse, and with dout the gradients. problem and tensors: device memory. Every buffer that is used must
// be there.
inline Status run(const tessera::cuda::Stream& stream, const Inputs& in, const Buffers& out) {
  const auto on = static_cast<cudaStream_t>(stream.handle());
  const AttentionProblem& p = in.p;
  const auto grid = [&](int64_t rows, int heads) {
    return dim3(static_cast<unsigned>(rows), static_cast<unsigned>(heads), static_cast<unsigned>(p.batch));
  };
  row_kernel<<<grid(p.seqlen_q, p.heads), kThreads, 0, on>>>(in, out);
  TESSERA_RETURN_IF_ERROR(tessera::cuda::launched("oracle rows", "a test"));
  if (in.dout.data == nullptr) return {};
  key_kernel<<<grid(p.seqlen_k, p.kv_heads), kThreads, 0, on>>>(in, out);
  return tessera::cuda::launched("oracle keys", "a test");
}

}  // namespace tessera::attention::oracle
