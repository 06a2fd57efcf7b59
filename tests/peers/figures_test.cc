// What the benchmarks of a device compute from samples.
#include "bench/cuda/figures.h"

#include <gtest/gtest.h>

namespace tessera::bench {
namespace {

TEST(Figures, ARatioIsTheMedianOfTheRoundsOwn) {
  EXPECT_DOUBLE_EQ(paired_ratio({2, 4, 12}, {1, 2, 3}), 2);  // 2, 2 and 4
  // The second round ran at half the clock: it changes neither side alone.
  EXPECT_DOUBLE_EQ(paired_ratio({3, 6, 3}, {2, 4, 2}), 1.5);
}

TEST(Figures, RoundsThatOneSideLacksDoNotCount) {
  EXPECT_DOUBLE_EQ(paired_ratio({1, 1, 9}, {2, 2}), 0.5);
  EXPECT_DOUBLE_EQ(paired_ratio({}, {1}), 0);
}

TEST(Figures, ATreeMayTakeThreeTenthsMoreThanTheReaderOrEighteenMicroseconds) {
  EXPECT_DOUBLE_EQ(tree_limit(100e-6), 130e-6);
  EXPECT_DOUBLE_EQ(tree_limit(5e-6), 18e-6);
  EXPECT_DOUBLE_EQ(tree_limit(0), 18e-6);
}

TEST(Figures, SetsHoldTheLeastBytesTogetherAsFarAsTheyMay) {
  EXPECT_EQ(rotated_sets(100, 400, 64), 5);
  EXPECT_EQ(rotated_sets(1000, 400, 64), 2);
  EXPECT_EQ(rotated_sets(1, 400, 64), 64);
}

}  // namespace
}  // namespace tessera::bench
