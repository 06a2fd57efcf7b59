// A problem over random tensors on the device, the kernels' results, and the oracle's exact and plain ones.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "tests/cuda/support/dense_case.h"
#include "tests/cuda/support/oracle.cuh"

namespace tessera::attention {

using DeviceBackward = Status (*)(tessera::cuda::Launch&, const AttentionProblem&, const BackwardTensors&);

struct OracleCase {
  DenseCase dense;
  DenseTensor dout, dq, dk, dv;
  // The oracle's, [exact, plain].
  std::vector<double> o[2], lse[2], gradients[2][3];
  std::vector<float> got_gradients[3];
  std::function<void()> prepare;  // changes the random tensors before the run

  OracleCase(DType dtype, int64_t batch, int64_t seqlen_q, int64_t seqlen_k, int heads, int dim,
             uint32_t seed)
      : dense(dtype, batch, seqlen_q, seqlen_k, heads, dim, seed) {}

  // Fills the tensors and runs forward, backward (if given) and the oracle. No NaN is placed.
  Status run(tessera::cuda::Launch& launch, DeviceForward forward, DeviceBackward backward) {
    const AttentionProblem& p = dense.p;
    const tessera::cuda::Stream& stream = launch.stream;
    const auto tensor = [&](int64_t rows, int heads, int dim, bool random) {
      DenseTensor t(p.dtype, dense.batches(), rows, heads, dim, dense.gap);
      if (random) t.fill(dense.random);
      return t;
    };
    dense.q = tensor(dense.all_rows(), p.heads, p.head_dim, true);
    dense.k = tensor(dense.all_keys(), p.kv_heads, p.head_dim, true);
    dense.v = tensor(dense.all_keys(), p.kv_heads, p.v_head_dim, true);
    dense.o = tensor(dense.all_rows(), p.heads, p.v_head_dim, false);
    dense.lse.assign(static_cast<size_t>(dense.batches() * p.heads * dense.all_rows()), 7.0f);
    dout = tensor(dense.all_rows(), p.heads, p.v_head_dim, true);
    dq = tensor(dense.all_rows(), p.heads, p.head_dim, false);
    dk = tensor(dense.all_keys(), p.kv_heads, p.head_dim, false);
    dv = tensor(dense.all_keys(), p.kv_heads, p.v_head_dim, false);

    if (prepare) prepare();

    const DeviceProblem problem(p, dense.mask, stream);
    const auto place = [&](const DenseTensor& t) {
      return DeviceCopy(t.bytes().data(), t.bytes().size(), stream);
    };
    const DeviceCopy q_at = place(dense.q), k_at = place(dense.k), v_at = place(dense.v),
                     o_at = place(dense.o), dout_at = place(dout), dq_at = place(dq), dk_at = place(dk),
                     dv_at = place(dv), lse_at(dense.lse.data(), dense.lse.size() * 4, stream);
    const auto at = [](auto view, const DeviceCopy& copy) {
      view.data = copy.data();
      return view;
    };
    ForwardTensors t = dense.tensors();
    t.q = at(t.q, q_at), t.k = at(t.k, k_at), t.v = at(t.v, v_at), t.o = at(t.o, o_at);
    t.lse = static_cast<float*>(lse_at.data());
    TESSERA_RETURN_IF_ERROR(forward(launch, problem.problem(), t));
    if (backward != nullptr) {
      const BackwardTensors b{t.q,
                              t.k,
                              t.v,
                              {o_at.data(), t.o.batch_stride, t.o.row_stride, t.o.head_stride},
                              at(std::as_const(dout).view(), dout_at),
                              t.lse,
                              at(dq.view(), dq_at),
                              at(dk.view(), dk_at),
                              at(dv.view(), dv_at)};
      TESSERA_RETURN_IF_ERROR(backward(launch, problem.problem(), b));
      dq_at.read(dq.view().data, stream);
      dk_at.read(dk.view().data, stream);
      dv_at.read(dv.view().data, stream);
      expect_gaps("dq", dq, p.dtype, dense.batches(), dense.all_rows());
      expect_gaps("dk", dk, p.dtype, dense.batches(), dense.all_keys());
      expect_gaps("dv", dv, p.dtype, dense.batches(), dense.all_keys());
      got_gradients[0] = dq.values(), got_gradients[1] = dk.values(), got_gradients[2] = dv.values();
    }
    o_at.read(dense.o.view().data, stream);
    lse_at.read(dense.lse.data(), stream);
    expect_gaps("o", dense.o, p.dtype, dense.batches(), dense.all_rows());
    for (const int plain : {0, 1}) {
      oracle::Inputs in{problem.problem(), t.q, t.k, t.v, {}, plain == 1};
      if (backward != nullptr) in.dout = at(std::as_const(dout).view(), dout_at);
      TESSERA_RETURN_IF_ERROR(ask(stream, in, plain));
    }
    return {};
  }

  // flash-attn's rule for o (twice the plain form's error) and the gradients (three times), with its slack
  // for what x + 0.3 loses in the dtype; f32 is multiplied with the bits of f16.
  void check(bool with_gradients) {
    const std::vector<float> got = dense.o.values();
    compare("o", got, o[0], o[1], 2.0);
    const char* const names[] = {"dq", "dk", "dv"};
    for (int i = 0; i < 3 && with_gradients; ++i) {
      compare(names[i], got_gradients[i], gradients[0][i], gradients[1][i], 3.0);
    }
    double worst = 0, plain_worst = 0;
    for (size_t i = 0; i < dense.lse.size(); ++i) {
      if (std::isinf(lse[0][i])) {
        ASSERT_EQ(dense.lse[i], -INFINITY) << "lse of row " << i;
        continue;
      }
      const double size = std::max(1.0, std::abs(lse[0][i]));
      if (!(std::abs(dense.lse[i] - lse[0][i]) / size <= worst))
        worst = std::abs(dense.lse[i] - lse[0][i]) / size;
      plain_worst = std::max(plain_worst, std::abs(lse[1][i] - lse[0][i]) / size);
    }
    EXPECT_TRUE(worst <= (dense.p.dtype == DType::f32 ? 2 * plain_worst : 0.0) + 1e-5) << "lse: " << worst;
  }

 private:
  void compare(const char* what, const std::vector<float>& got, const std::vector<double>& want,
               const std::vector<double>& plain, double factor) {
    const DType type = dense.p.dtype == DType::f32 ? DType::f16 : dense.p.dtype;
    double error = 0, plain_error = 0, slack = 0, sum = 0, plain_sum = 0;
    size_t worst = 0;
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i) {
      const double e = std::abs(got[i] - want[i]), f = std::abs(plain[i] - want[i]);
      if (!(e <= error)) error = e, worst = i;
      plain_error = std::max(plain_error, f);
      sum += e;
      plain_sum += f;
      const double there = rounded(type, want[i] + 0.3);
      slack = std::max(slack, 2 * std::abs(rounded(type, there - 0.3) - want[i]));
    }
    EXPECT_TRUE(error <= factor * plain_error + slack)
        << what << ": " << error << " against " << plain_error << " of the plain form at element " << worst
        << ": " << got[worst] << " for " << want[worst];
    // In the mean 1.5 times for o, and for gradients, whose delta is of the rounded o, twice.
    EXPECT_TRUE(sum <= (factor + 1) / 2 * plain_sum + 1e-5 * static_cast<double>(got.size()))
        << what << ": mean error " << sum / static_cast<double>(got.size()) << " against "
        << plain_sum / static_cast<double>(got.size());
  }

  Status ask(const tessera::cuda::Stream& stream, const oracle::Inputs& in, int plain) {
    const AttentionProblem& p = dense.p;
    std::vector<tessera::cuda::DeviceBuffer> buffers;
    const auto make = [&](size_t count, double** to) -> Status {
      TESSERA_ASSIGN_OR_RETURN(tessera::cuda::DeviceBuffer buffer,
                               tessera::cuda::DeviceBuffer::create(count * 8 + 8, "the oracle"));
      TESSERA_RETURN_IF_ERROR(tessera::cuda::fill_bytes(buffer.data(), 0, count * 8 + 8, stream));
      *to = static_cast<double*>(buffer.data());
      buffers.push_back(std::move(buffer));
      return {};
    };
    const size_t stats = static_cast<size_t>(p.batch * p.heads * p.seqlen_q);
    const size_t rows = static_cast<size_t>(dense.batches() * dense.all_rows() * p.heads);
    const size_t keys = static_cast<size_t>(dense.batches() * dense.all_keys() * p.kv_heads);
    const size_t dim = static_cast<size_t>(p.head_dim), v_dim = static_cast<size_t>(p.v_head_dim);
    oracle::Buffers out;
    for (double** to : {&out.maximum, &out.sum, &out.delta}) TESSERA_RETURN_IF_ERROR(make(stats, to));
    TESSERA_RETURN_IF_ERROR(make(rows * v_dim, &out.o));
    TESSERA_RETURN_IF_ERROR(make(rows, &out.lse));
    TESSERA_RETURN_IF_ERROR(make(rows * dim, &out.dq));
    TESSERA_RETURN_IF_ERROR(make(keys * dim, &out.dk));
    TESSERA_RETURN_IF_ERROR(make(keys * v_dim, &out.dv));
    TESSERA_RETURN_IF_ERROR(oracle::run(stream, in, out));
    const auto fetch = [&](std::vector<double>* to, const double* from, size_t count) {
      to->resize(count);
      return count == 0 ? Status() : tessera::cuda::copy(to->data(), from, count * 8, stream);
    };
    TESSERA_RETURN_IF_ERROR(fetch(&o[plain], out.o, rows * v_dim));
    TESSERA_RETURN_IF_ERROR(fetch(&lse[plain], out.lse, rows));
    TESSERA_RETURN_IF_ERROR(fetch(&gradients[plain][0], out.dq, rows * dim));
    TESSERA_RETURN_IF_ERROR(fetch(&gradients[plain][1], out.dk, keys * dim));
    TESSERA_RETURN_IF_ERROR(fetch(&gradients[plain][2], out.dv, keys * v_dim));
    return stream.synchronize();
  }
};

}  // namespace tessera::attention
