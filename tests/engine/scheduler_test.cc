// Planning by hand: what a plan holds, and that giving one back leaves no trace.
#include "engine/scheduler.h"

#include <gtest/gtest.h>

#include <random>

#include "tests/engine/fake_runner.h"
#include "tests/engine/harness.h"

namespace tessera::engine::testing {
namespace {

struct Bench {
  explicit Bench(const SchedulerOptions& given)
      : options(given),
        scheduler(given),
        runner(given.cache.num_blocks, given.cache.block_tokens),
        plan(*StepPlan::create({.max_rows = given.max_num_batched_tokens,
                                .max_sequences = given.max_num_seqs,
                                .max_blocks_per_sequence = 256,
                                .max_model_len = 2048})) {}

  void add(uint64_t id, std::vector<int32_t> prompt, int max_tokens, int n = 1) {
    ScheduledRequest request{
        .id = id, .prompt = std::move(prompt), .n = n, .max_tokens = max_tokens, .seed = 3};
    requests[id] = request;
    scheduler.add(std::move(request));
  }
  void run() {
    const Runner::Ticket ticket = runner.submit(plan);
    scheduler.submitted();
    std::vector<TokenEvent> events;
    scheduler.complete(runner.wait(ticket), &events);
    for (const TokenEvent& event : events) {
      auto& tokens = answers[{event.request, event.sample}];
      tokens.push_back(event.token);
      if (static_cast<int>(tokens.size()) == requests[event.request].max_tokens) {
        scheduler.finish(event.request, event.sample);
      }
    }
  }
  void check() {
    const Status state = scheduler.check_invariants();
    ASSERT_TRUE(state.ok()) << state.message();
    for (const std::string& error : runner.errors) FAIL() << error;
  }
  void expect_answers() {
    for (const auto& [id, request] : requests) {
      for (int i = 0; i < request.n; ++i) {
        EXPECT_EQ((answers[{id, i}]), runner.model().expected_tokens(
                                          request.prompt, 3, static_cast<uint32_t>(i), request.max_tokens));
      }
    }
  }

  SchedulerOptions options;
  Scheduler scheduler;
  FakeRunner runner;
  StepPlan plan;
  std::map<uint64_t, ScheduledRequest> requests;
  std::map<std::pair<uint64_t, int>, std::vector<int32_t>> answers;
};

SchedulerOptions small(int blocks) {
  return {
      .cache = {.num_blocks = blocks, .block_tokens = 16}, .max_num_seqs = 8, .max_num_batched_tokens = 64};
}

TEST(Scheduler, AStepIsDecodesThenPrefillChunksThenAdmissions) {
  Bench b(small(64));
  b.add(1, make_prompt(10, 1), 20);
  ASSERT_TRUE(b.scheduler.plan(&b.plan));
  b.run();
  b.add(2, make_prompt(300, 2), 20);
  b.add(3, make_prompt(5, 3), 20);
  ASSERT_TRUE(b.scheduler.plan(&b.plan));
  EXPECT_EQ(b.plan.rows, 64);
  ASSERT_EQ(b.plan.num_sequences, 2);
  EXPECT_EQ(b.plan.sequences[0].rows, 1);
  EXPECT_EQ(b.plan.row_kind[0], RowKind::step);
  EXPECT_EQ(b.plan.sequences[1].rows, 63);
  EXPECT_EQ(b.plan.row_kind[1], RowKind::prompt);
  EXPECT_FALSE(b.plan.samples[1].draw);  // a chunk's end is only checked
  b.run();
  ASSERT_TRUE(b.scheduler.plan(&b.plan));
  ASSERT_EQ(b.plan.num_sequences, 3);
  EXPECT_EQ(b.plan.sequences[1].rows, 58);  // what the others want of the other half is theirs
  EXPECT_EQ(b.plan.sequences[2].rows, 5);
  EXPECT_TRUE(b.plan.samples[2].draw);
  b.run();
  b.check();
}

TEST(Scheduler, ARowThatIsComputedAgainKeepsItsKind) {
  SchedulerOptions options = small(8);
  options.cache.prefix_caching = false;
  Bench b(options);
  b.add(1, make_prompt(20, 1), 100);
  b.add(2, make_prompt(20, 2), 80);
  bool again = false;
  while (b.scheduler.plan(&b.plan)) {
    for (int i = 0; i < b.plan.num_sequences; ++i) {
      const PlanSequence& sequence = b.plan.sequences[i];
      for (int row = sequence.first_row; row < sequence.first_row + sequence.rows; ++row) {
        ASSERT_EQ(b.plan.row_kind[row], b.plan.row_position[row] < 20 ? RowKind::prompt : RowKind::step);
        again |= sequence.rows > 1 && b.plan.row_kind[row] == RowKind::step;
      }
    }
    b.run();
    b.check();
  }
  EXPECT_TRUE(again);
  b.expect_answers();
}

TEST(Scheduler, APlanThatIsGivenBackLeavesNoTrace) {
  std::printf("seed 9\n");
  std::mt19937_64 random(9);
  for (int round = 0; round < 40; ++round) {
    SchedulerOptions options = small(24 + static_cast<int>(random() % 40));
    options.cache.kv_sharing = round % 5 != 0;
    Bench b(options);
    for (uint64_t id = 1; id <= 12; ++id) {
      b.add(id, make_prompt(1 + static_cast<int>(random() % 80), random() % 3),
            1 + static_cast<int>(random() % 40), 1 + static_cast<int>(random() % 3));
    }
    int steps = 0;
    for (;;) {
      const kvcache::BlockPool& pool = b.scheduler.cache().pool();
      const uint64_t preemptions = b.scheduler.counters().preemptions;
      const int32_t referenced = pool.referenced();
      const int running = b.scheduler.running_sequences();
      if (!b.scheduler.plan(&b.plan)) break;
      if (random() % 3 == 0) {
        b.check();
        b.scheduler.roll_back();
        b.check();
        if (b.scheduler.counters().preemptions == preemptions) {
          ASSERT_EQ(pool.referenced(), referenced);
          ASSERT_EQ(b.scheduler.running_sequences(), running);
        }
        if (!b.scheduler.plan(&b.plan)) continue;
      }
      b.run();
      b.check();
      ASSERT_LT(++steps, 5000);
    }
    EXPECT_TRUE(b.scheduler.idle());
    b.expect_answers();
  }
}

TEST(Scheduler, AFailedStepIsForgottenAndItsRequestsAreNamed) {
  Bench b(small(64));
  b.add(1, make_prompt(32, 1), 20);
  b.add(2, make_prompt(32, 2), 20, 3);
  b.add(3, make_prompt(200, 3), 20);  // behind the step's 64 rows
  ASSERT_TRUE(b.scheduler.plan(&b.plan));
  b.scheduler.submitted();
  EXPECT_EQ(b.scheduler.fail_in_flight(), (std::vector<uint64_t>{1, 2}));
  b.scheduler.finish_all(1, Disposal::drop);
  b.scheduler.finish_all(2, Disposal::drop);
  b.requests.erase(1);
  b.requests.erase(2);
  b.check();
  EXPECT_EQ(b.scheduler.cache().pool().free(), 64);
  while (b.scheduler.plan(&b.plan)) b.run();
  b.check();
  b.expect_answers();
}

// What a bug in a runner would look like. In presets with debug checks it aborts.
TEST(SchedulerDeathTest, AnAnswerOfTheWrongSizeIsABugAndTheStepStaysInFlight) {
  Bench b(small(64));
  b.add(1, make_prompt(30, 1), 20);
  ASSERT_TRUE(b.scheduler.plan(&b.plan));
  b.scheduler.submitted();
  std::vector<TokenEvent> events;
#ifdef TESSERA_DEBUG_CHECKS
  EXPECT_DEATH(b.scheduler.complete({}, &events), "another number of samples");
#else
  EXPECT_THROW(b.scheduler.complete({}, &events), InternalError);
  EXPECT_EQ(b.scheduler.fail_in_flight(), (std::vector<uint64_t>{1}));
#endif
}

TEST(StepPlan, BadLimitsAreRefused) {
  EXPECT_FALSE(StepPlan::create({}).ok());
  EXPECT_FALSE(StepPlan::create({.max_rows = 1,
                                 .max_sequences = 1 << 30,
                                 .max_blocks_per_sequence = 1 << 30,
                                 .max_model_len = 1 << 30})
                   .ok());
}

}  // namespace
}  // namespace tessera::engine::testing
