// A DenseCase of the CPU's tests on the device: tensors with their gaps and everything the problem points at
// are copied there, and what the kernel wrote comes back.
#pragma once

#include <algorithm>
#include <vector>

#include "core/cuda/device.h"
#include "tests/attention/dense_fixture.h"
#include "tests/cuda/support/guarded_buffer.h"

namespace tessera::attention {

// A guarded device copy of host bytes.
class DeviceCopy {
 public:
  DeviceCopy(const void* data, size_t bytes, const tessera::cuda::Stream&) : buffer_(data, bytes) {}
  void* data() const { return buffer_.data(); }
  // Back to the host; the guards must be as they were.
  void read(void* to, const tessera::cuda::Stream& stream) const {
    const Status status = stream.synchronize();
    EXPECT_TRUE(status.ok()) << status.message();
    buffer_.read(to);
    buffer_.check();
  }

 private:
  cuda_test::GuardedBuffer buffer_;
};

// What lies between the heads, rows and batches of a tensor that was written is the NaN of before.
inline void expect_gaps(const char* what, const DenseTensor& tensor, DType dtype, int64_t batches,
                        int64_t rows) {
  const Strided<const void*> at = tensor.view();
  const std::vector<char>& bytes = tensor.bytes();
  const int64_t element = info(dtype).block_bytes;
  std::vector<bool> inside(bytes.size());
  if (batches * rows * tensor.heads() == 0) return;
  for (int64_t row = 0; row < batches * rows * tensor.heads(); ++row) {
    const int64_t h = row % tensor.heads(), r = row / tensor.heads() % rows, b = row / tensor.heads() / rows;
    const int64_t first = (b * at.batch_stride + r * at.row_stride + h * at.head_stride) * element;
    std::fill_n(inside.begin() + first, tensor.dim() * element, true);
  }
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (inside[i] || bytes[i] == static_cast<char>(0xff)) continue;
    ADD_FAILURE() << what << " was written in a gap, at byte " << i << " of " << bytes.size();
    return;
  }
}

// The problem with its arrays on the device.
class DeviceProblem {
 public:
  DeviceProblem(const AttentionProblem& p, const std::vector<char>& mask, const tessera::cuda::Stream& stream)
      : p_(p) {
    const size_t batch = static_cast<size_t>(p.batch);
    if (p.cu_seqlens_q != nullptr) {
      p_.total_q = p.cu_seqlens_q[p.batch];
      p_.total_k = p.cu_seqlens_k[p.batch];
      put(&p_.cu_seqlens_q, batch + 1, stream);
      put(&p_.cu_seqlens_k, batch + 1, stream);
    }
    if (p.seqused_k != nullptr) put(&p_.seqused_k, batch, stream);
    if (p.leftpad_k != nullptr) put(&p_.leftpad_k, batch, stream);
    if (p.alibi_slopes != nullptr) {
      put(&p_.alibi_slopes,
          static_cast<size_t>(p.alibi_batch_stride > 0 ? p.batch * p.alibi_batch_stride : p.heads), stream);
    }
    if (p.mask.tensor.kind != MaskKind::none) {
      copies_.emplace_back(mask.data(), mask.size(), stream);
      p_.mask.tensor.data = copies_.back().data();
    }
    const Ancestors& tree = p.mask.ancestors;
    if (tree.tree_keys > 0) {
      put(&p_.mask.ancestors.bits, static_cast<size_t>(p.batch * p.seqlen_q * ((tree.tree_keys + 63) / 64)),
          stream);
      if (tree.depth != nullptr) {
        put(&p_.mask.ancestors.depth, static_cast<size_t>(p.batch * tree.tree_keys), stream);
      }
    }
  }
  const AttentionProblem& problem() const { return p_; }

 private:
  template <typename T>
  void put(const T** pointer, size_t count, const tessera::cuda::Stream& stream) {
    copies_.emplace_back(*pointer, count * sizeof(T), stream);
    *pointer = static_cast<const T*>(copies_.back().data());
  }
  AttentionProblem p_;
  std::vector<DeviceCopy> copies_;
};

using DeviceForward = Status (*)(tessera::cuda::Launch&, const AttentionProblem&, const ForwardTensors&);

// Runs `forward` on the device over c's tensors; o and lse land in c.
inline Status run_on_device(tessera::cuda::Launch& launch, DeviceForward forward, DenseCase& c) {
  const tessera::cuda::Stream& stream = launch.stream;
  const DeviceProblem problem(c.p, c.mask, stream);
  const DeviceCopy q(c.q.bytes().data(), c.q.bytes().size(), stream),
      k(c.k.bytes().data(), c.k.bytes().size(), stream), v(c.v.bytes().data(), c.v.bytes().size(), stream),
      o(c.o.bytes().data(), c.o.bytes().size(), stream), lse(c.lse.data(), c.lse.size() * 4, stream);
  ForwardTensors t = c.tensors();
  void* host_o = t.o.data;
  t.q.data = q.data(), t.k.data = k.data(), t.v.data = v.data(), t.o.data = o.data();
  t.lse = static_cast<float*>(lse.data());
  TESSERA_RETURN_IF_ERROR(forward(launch, problem.problem(), t));
  o.read(host_o, stream);
  lse.read(c.lse.data(), stream);
  expect_gaps("o", c.o, c.p.dtype, c.batches(), c.all_rows());
  return stream.synchronize();
}

// DenseCase::check() for f32 multiplied as tf32: the plain form is the double reference over operands rounded
// to tf32, and probabilities take one more such rounding.
inline void check_tf32(DenseCase& c) {
  const DenseCase::Answer want = c.reference_answer();
  const auto round = [](std::vector<float> values) {
    for (float& x : values) {
      uint32_t bits;
      std::memcpy(&bits, &x, 4);
      bits = (bits + 0x1000u) & ~0x1fffu;
      std::memcpy(&x, &bits, 4);
    }
    return values;
  };
  const std::vector<float> q = round(c.q.values()), k = round(c.k.values()), v = round(c.v.values());
  DenseCase::Answer plain{std::vector<double>(want.o.size()), std::vector<double>(want.lse.size())};
  reference::attention(c.p, c.q.operand(q), c.k.operand(k), c.v.operand(v), plain.o.data(), plain.lse.data());
  const std::vector<float> got = c.o.values();
  double error = 0, plain_error = 0, lse_error = 0, plain_lse_error = 0, largest = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    if (!(std::abs(got[i] - want.o[i]) <= error)) error = std::abs(got[i] - want.o[i]);
    plain_error = std::max(plain_error, std::abs(plain.o[i] - want.o[i]));
    largest = std::max(largest, std::abs(want.o[i]));
  }
  for (size_t i = 0; i < c.lse.size(); ++i) {
    if (std::isinf(want.lse[i])) {
      ASSERT_EQ(c.lse[i], -INFINITY) << "row " << i;
      continue;
    }
    if (!(std::abs(c.lse[i] - want.lse[i]) <= lse_error)) lse_error = std::abs(c.lse[i] - want.lse[i]);
    plain_lse_error = std::max(plain_lse_error, std::abs(plain.lse[i] - want.lse[i]));
  }
  EXPECT_TRUE(error <= 2 * plain_error + largest / 2048) << error << " against " << plain_error;
  EXPECT_TRUE(lse_error <= 2 * plain_lse_error + 1e-5) << lse_error << " against " << plain_lse_error;
}

// What the device tests leave out of the pairs of features: a tree has one length of rows and keys.
inline bool goes_together(Feature a, Feature b) {
  if (b != Feature::ancestors) return true;
  return a != Feature::varlen && a != Feature::seqused;
}

// The feature, with gaps that keep rows on 16 bytes, which every CUDA kernel asks for.
inline void add_on_device(DenseCase& c, Feature feature) {
  c.add(feature);
  if (feature == Feature::gaps) c.gap = 8;
}

// Each feature and each pair on a small problem of heads of `dim` elements: check(case) runs it, and stops
// the rest when it failed.
template <typename Check>
void each_feature_and_each_pair(DType dtype, uint32_t seed, Check&& check, int dim = 40) {
  for (const Feature a : kEveryFeature) {
    for (const Feature b : kEveryFeature) {
      if (b < a || !goes_together(a, b)) continue;
      SCOPED_TRACE(std::string(name(a)) + " and " + name(b) + ", seed " + std::to_string(seed));
      DenseCase c(dtype, 3, 37, 150, 2, dim, seed++);
      add_on_device(c, a);
      if (b != a) add_on_device(c, b);
      c.fill(2.0f);
      check(c);
      if (::testing::Test::HasFailure()) return;
    }
  }
}

}  // namespace tessera::attention
