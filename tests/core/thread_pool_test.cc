#include "core/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <vector>

namespace tessera {
namespace {

TEST(ThreadPool, RunCallsEachWorkerOnce) {
  for (int threads : {1, 2, 3, 5}) {
    ThreadPool pool({.threads = threads});
    std::vector<std::atomic<int>> calls(static_cast<size_t>(threads));
    for (int repeat = 0; repeat < 200; ++repeat) {
      pool.run([&](int worker) { calls[static_cast<size_t>(worker)].fetch_add(1); });
    }
    for (const auto& count : calls) EXPECT_EQ(count.load(), 200);
  }
}

TEST(ThreadPool, ParallelForCoversEachIndexOnce) {
  ThreadPool pool({.threads = 3});
  for (int64_t count : {0, 1, 2, 3, 7, 64, 1000}) {
    for (int64_t grain : {1, 3, 64}) {
      std::vector<std::atomic<int>> hits(static_cast<size_t>(count));
      pool.parallel_for(count, grain, [&](int64_t begin, int64_t end, int worker) {
        EXPECT_GE(worker, 0);
        EXPECT_LT(worker, 3);
        for (int64_t i = begin; i < end; ++i) hits[static_cast<size_t>(i)].fetch_add(1);
      });
      for (const auto& hit : hits) EXPECT_EQ(hit.load(), 1) << count << " by " << grain;
    }
  }
}

TEST(ThreadPool, AnExceptionOfAWorkerReachesTheCallerAndThePoolLives) {
  ThreadPool pool({.threads = 2});
  EXPECT_THROW(pool.run([](int worker) {
    if (worker == 1) throw std::runtime_error("boom");
  }),
               std::runtime_error);
  std::atomic<int> calls{0};
  pool.run([&](int) { calls.fetch_add(1); });
  EXPECT_EQ(calls.load(), 2);
}

TEST(ThreadPool, WakesWorkersThatSleep) {
  ThreadPool pool({.threads = 2, .spin_us = 0});
  std::atomic<int> calls{0};
  for (int repeat = 0; repeat < 50; ++repeat) {
    std::this_thread::sleep_for(std::chrono::microseconds(200));
    pool.run([&](int) { calls.fetch_add(1); });
  }
  EXPECT_EQ(calls.load(), 100);
}

// A job that the caller ends alone returns though the worker has not come, and the next one is whole again.
TEST(ThreadPool, AWorkerThatComesTooLateIsLeftOut) {
  for (int threads : {2, 3, 5}) {
    ThreadPool pool({.threads = threads, .spin_us = 0});
    for (int repeat = 0; repeat < 300; ++repeat) {
      std::atomic<int> began{0}, ended{0};
      pool.run_any([&](int) {
        began.fetch_add(1);
        ended.fetch_add(1);
      });
      // What began has ended, and nothing begins any more.
      const int count = began.load();
      EXPECT_GE(count, 1);
      EXPECT_EQ(ended.load(), count);
      if (repeat % 3 == 0) std::this_thread::sleep_for(std::chrono::microseconds(30));
      EXPECT_EQ(began.load(), count);
      if (repeat % 7 == 0) {
        std::atomic<int> calls{0};
        pool.run([&](int) { calls.fetch_add(1); });
        EXPECT_EQ(calls.load(), threads);
      }
    }
  }
}

TEST(ThreadPool, ParallelForIsWholeWhoeverComes) {
  ThreadPool pool({.threads = 4, .spin_us = 0});
  for (int repeat = 0; repeat < 500; ++repeat) {
    std::vector<int> hits(static_cast<size_t>(1 + repeat % 9), 0);
    pool.parallel_for(static_cast<int64_t>(hits.size()), 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) ++hits[static_cast<size_t>(i)];
    });
    for (const int hit : hits) ASSERT_EQ(hit, 1);
  }
}

}  // namespace
}  // namespace tessera
