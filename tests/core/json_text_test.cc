// Strings as JSON text.
#include "core/json_text.h"

#include <gtest/gtest.h>

namespace tessera {
namespace {

std::string quoted(std::string_view text) {
  std::string out;
  append_json_string(out, text);
  return out;
}

TEST(JsonText, EscapesWhatMayNotStandInAString) {
  EXPECT_EQ(quoted("plain"), "\"plain\"");
  EXPECT_EQ(quoted("\"\\/"), "\"\\\"\\\\/\"");
  EXPECT_EQ(quoted("\b\f\n\r\t"), "\"\\b\\f\\n\\r\\t\"");
  EXPECT_EQ(quoted(std::string_view("\0\x1f\x7f", 3)), "\"\\u0000\\u001f\\u007f\"");
}

TEST(JsonText, KeepsUtf8AndReplacesWhatIsNone) {
  EXPECT_EQ(quoted("\xc3\xa9\xf0\x9f\x98\x80z"), "\"\xc3\xa9\xf0\x9f\x98\x80z\"");
  const std::string lost = "\xef\xbf\xbd";
  EXPECT_EQ(quoted("a\xff\xc3"), "\"a" + lost + lost + "\"");
  EXPECT_EQ(quoted("\xed\xa0\x80"), "\"" + lost + lost + lost + "\"");
}

}  // namespace
}  // namespace tessera
