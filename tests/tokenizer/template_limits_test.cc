// Hostile templates: each ends at once with one line, whatever it tries.
#include <gtest/gtest.h>

#include <ctime>

#include "tokenizer/chat_template.h"

namespace tessera::tokenizer {
namespace {

std::string repeated(const std::string& text, int times) {
  std::string out;
  for (int i = 0; i < times; ++i) out += text;
  return out;
}

struct Bomb {
  std::string source;
  const char* message;  // a part of it
};

class TemplateBomb : public ::testing::Test {
 protected:
  // The whole: compile and render, one line, in two seconds of CPU time.
  static Result<RenderedChat> compile_and_render(const std::string& source) {
    TESSERA_ASSIGN_OR_RETURN(const ChatTemplate compiled, ChatTemplate::compile(source, "<s>", "</s>"));
    return compiled.render({{"user", std::string(1000, 'x'), ""}});
  }
  static void expect_refused(const Bomb& bomb) {
    const std::clock_t start = std::clock();  // of this process: a busy machine does not count
    const Result<RenderedChat> chat = compile_and_render(bomb.source);
    const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
    const std::string shown = bomb.source.substr(0, 200);
    ASSERT_FALSE(chat.ok()) << shown;
    const std::string& message = chat.status().message();
    EXPECT_NE(message.find(bomb.message), std::string::npos) << shown << "\n" << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    EXPECT_LT(message.size(), 700u);
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    EXPECT_LT(seconds, 30.0) << shown;
#else
    EXPECT_LT(seconds, 2.0) << shown;
#endif
  }
};

TEST_F(TemplateBomb, LongLoops) {
  const std::string nested =
      "{% for a in range(100000) %}{% for b in range(100000) %}{% for c in range(100000) %}";
  const std::string ends = "{% endfor %}{% endfor %}{% endfor %}";
  const Bomb bombs[] = {
      {"{{ range(10**9) }}", "over the limit of 100000"},
      {"{% for x in range(100001) %}{% endfor %}", "over the limit of 100000"},
      {"{{ range(-9223372036854775807, 9223372036854775807) }}", "over the limit of 100000"},
      {nested + ends, "steps"},
      {nested + "x" + ends, "steps"},
      {"{% for a in range(100000) %}{% for b in range(100000) if false %}{% endfor %}{% endfor %}", "steps"},
      {"{% for a in range(100000) %}{% if messages[0].content | upper | lower == 'y' %}{% endif %}{% endfor "
       "%}",
       "steps"},
      {"{% for a in range(100000) %}{% set x = range(100000) | list %}{% endfor %}", "steps"},
      {"{% for a in range(100000) %}{{ range(100000) | sum }}{% endfor %}", "steps"},
      {"{% for a in range(100000) %}{{ range(100000) | map('string') | join | length }}{% endfor %}",
       "steps"},
  };
  for (const Bomb& bomb : bombs) expect_refused(bomb);
}

TEST_F(TemplateBomb, LargeTexts) {
  const Bomb bombs[] = {
      {"{{ 'a' * 10**9 }}", "over the limit of 16777216 bytes"},
      {"{{ 'ab' * 9223372036854775807 }}", "over the limit of 16777216 bytes"},
      {"{{ [0] * 10**9 }}", "steps"},
      {"{{ [[0] * 100000] * 100000 }}", "steps"},
      {"{% set ns = namespace(x='ab') %}{% for i in range(100) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
       "limit"},
      {"{% set ns = namespace(x='ab') %}{% for i in range(100) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
       "limit"},
      {"{% set ns = namespace(x='ab') %}{% for i in range(100) %}{% set ns.x = ns.x.replace('b', ns.x) %}{% "
       "endfor %}",
       "limit"},
      {"{% set ns = namespace(x='ab') %}{% for i in range(100) %}{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset "
       "%}{% endfor %}",
       "limit"},
      {"{% set x = 'a' * 16000000 %}{% for i in range(100000) %}{{ x }}{% endfor %}", "limit"},
      {"{% set x = 'a' * 16000000 %}{% for i in range(100000) %}{% if x == x ~ '' %}{% endif %}{% endfor %}",
       "steps"},
      {"{% set x = 'a' * 16000000 %}{% for i in range(100000) %}{% if 'b' in x %}{% endif %}{% endfor %}",
       "steps"},
      {"{% set x = 'a' * 16000000 %}{% for i in range(100000) %}{% if {} [x] %}{% endif %}{% endfor %}",
       "steps"},
      {"{% set x = 'a' * 16000000 %}{% for i in range(100000) %}{% if x | length %}{% endif %}{% endfor %}",
       "steps"},
      {"{% set x = 'a' * 16000000 %}{% for i in range(100000) %}{% if x[5] == x.strip() %}{% endif %}{% "
       "endfor %}",
       "steps"},
      {"{{ (['a' * 16000000] * 1000) | join }}", "limit"},
      {"{{ (['a' * 16000000] * 1000) | tojson }}", "limit"},
      {"{{ ['a' * 16000000] * 1000 }}", "limit"},
      {"{{ '%1000000000d' % 1 }}", "over the limit of 10000"},
      {"{{ '%.1000000000f' % 1 }}", "over the limit of 10000"},
      {"{{ 'a'.center(1000000000) }}", "over the limit of 100000"},
      {"{{ 'a'.zfill(1000000000) }}", "over the limit of 100000"},
      {"{{ 'a' | indent(1000000000) }}", "over the limit of 100000"},
      {"{{ ('a\\n' * 100000) | indent(100000, true, true) }}", "limit"},
      {"{{ [1] | batch(1000000000, 0) | list }}", "1..100000"},
      {"{{ [1] | slice(1000000000) | list }}", "1..100000"},
      {"{{ [[1]] | tojson(indent=1000000000) }}", "over the limit of 1000"},
      {"{{ strftime_now('%c' * 10000) }}", "over the limit of 256"},
  };
  for (const Bomb& bomb : bombs) expect_refused(bomb);
}

TEST_F(TemplateBomb, DeepNesting) {
  const Bomb bombs[] = {
      {"{{ " + repeated("(", 100000) + "1" + repeated(")", 100000) + " }}", "nested deeper"},
      {"{{ " + repeated("[", 100000) + repeated("]", 100000) + " }}", "nested deeper"},
      {"{{ " + repeated("{'a':", 100000) + "1" + repeated("}", 100000) + " }}", "nested deeper"},
      {"{{ " + repeated("not ", 100000) + "1 }}", "nested deeper"},
      {"{{ " + repeated("-", 100000) + "1 }}", "nested deeper"},
      {"{{ 1" + repeated(" + 1", 100000) + " }}", "nested deeper"},
      {"{{ 1" + repeated(" ** 1", 100000) + " }}", "nested deeper"},
      {"{{ x" + repeated(".x", 100000) + " }}", "nested deeper"},
      {"{{ x" + repeated("[0]", 100000) + " }}", "nested deeper"},
      {"{{ x" + repeated("()", 100000) + " }}", "nested deeper"},
      {"{{ x" + repeated("|trim", 100000) + " }}", "nested deeper"},
      {"{{ x" + repeated(" if 1 else 1", 50000) + " }}", "nested deeper"},
      {"{{ 1" + repeated(" or 1", 100000) + " }}", "nested deeper"},
      {"{% filter trim" + repeated("|trim", 100000) + " %}{% endfilter %}", "nested deeper"},
      {repeated("{% if 1 %}", 40000) + repeated("{% endif %}", 40000), "nested deeper"},
      {repeated("{% for x in [1] %}", 30000) + repeated("{% endfor %}", 30000), "nested deeper"},
      {"{% set " + repeated("(", 100000) + "x" + repeated(")", 100000) + " = 1 %}", "nested deeper"},
      {"{% set ns = namespace(x=[]) %}{% for i in range(1000) %}{% set ns.x = [ns.x] %}{% endfor %}",
       "nested deeper"},
      {"{% set ns = namespace(x={}) %}{% for i in range(1000) %}{% set ns.x = {'a': ns.x} %}{% endfor %}",
       "nested deeper"},
      {"{% set ns = namespace(x=1) %}{% for i in range(1000) %}{% for j in [ns.x] %}{% set ns.x = loop %}{% "
       "endfor %}{% endfor %}",
       "nested deeper"},
      {"{% set ns = namespace(x=[]) %}{% for i in range(1000) %}{% set ns.x = [ns.x.index] %}{% endfor %}",
       "limit"},
      // A small graph that prints, compares, hashes or counts as an enormous tree.
      {"{% set ns = namespace(x=[1]) %}{% for i in range(90) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ "
       "ns.x }}",
       "limit"},
      {"{% set ns = namespace(x=[1]) %}{% for i in range(90) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ "
       "ns.x | tojson }}",
       "limit"},
      {"{% set ns = namespace(x=[1]) %}{% for i in range(90) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ "
       "ns.x == ns.x }}",
       "steps"},
      {"{% set ns = namespace(x=(1,)) %}{% for i in range(90) %}{% set ns.x = (ns.x, ns.x) %}{% endfor %}{{ "
       "{ns.x: 1} }}",
       "steps"},
  };
  for (const Bomb& bomb : bombs) expect_refused(bomb);
}

TEST_F(TemplateBomb, Recursion) {
  const Bomb bombs[] = {
      {"{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "limit of 100"},
      {"{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
       "limit of 100"},
      {"{% macro a(x=a()) %}{% endmacro %}{{ a() }}", "limit"},
      {"{% macro a() %}{% call a() %}{{ caller() }}{% endcall %}{{ caller() }}{% endmacro %}{{ a() }}",
       "limit of 100"},
      {"{% macro a() %}" + repeated("{% if 1 %}", 150) + "{{ " + repeated("(", 20) + "a()" +
           repeated(")", 20) + " }}" + repeated("{% endif %}", 150) + "{% endmacro %}{{ a() }}",
       "limit"},
      {"{% macro a(n) %}{% if n %}{{ a(n - 1) }}{{ a(n - 1) }}{% endif %}{% endmacro %}{{ a(90) }}", "steps"},
  };
  for (const Bomb& bomb : bombs) expect_refused(bomb);
}

TEST_F(TemplateBomb, Arithmetic) {
  const Bomb bombs[] = {
      {"{{ 9223372036854775807 + 1 }}", "overflow"},
      {"{{ 9223372036854775807 * 2 }}", "overflow"},
      {"{{ 2 ** 63 }}", "overflow"},
      {"{{ 10 ** 1000000000 }}", "overflow"},
      {"{{ (-9223372036854775807 - 1) // -1 }}", "overflow"},
      {"{{ -(-9223372036854775807 - 1) }}", "overflow"},
      {"{{ (-9223372036854775807 - 1) | abs }}", "overflow"},
      {"{{ 99999999999999999999 }}", "out of range"},
      {"{{ '99999999999999999999' | int }}", "overflow"},
      {"{{ 1e300 | int }}", "overflow"},
      {"{{ 1e308 ** 2 }}", "overflow"},
      {"{{ 1 % 0 }}", "division by zero"},
      {"{{ 1 // 0.0 }}", "division by zero"},
      {"{{ 0 / 0 }}", "division by zero"},
      {"{{ 5 is divisibleby 0 }}", "division by zero"},
      {"{{ 1.5 | round(400000000000) | round(1, 'ceil') | nope }}", "nope"},
  };
  for (const Bomb& bomb : bombs) expect_refused(bomb);
}

TEST_F(TemplateBomb, LargeSources) {
  expect_refused({std::string((1 << 20) + 1, 'x'), "more than the limit of 1048576"});
  expect_refused({"\xff", "not UTF-8"});
  expect_refused({"{{ f(" + repeated("1,", 500) + ") }}", "arguments"});
  std::string names, uses;
  for (int i = 0; i < 30000; ++i) names += "{% set v" + std::to_string(i) + "=1 %}";
  expect_refused(
      {names + "{% for a in range(100000) %}{% for b in range(100000) %}{{ v29999 }}{% endfor %}{% endfor %}",
       "steps"});
}

TEST(TemplateLimits, AreTheCallers) {
  const auto compiled = ChatTemplate::compile("{% for i in range(50) %}{{ i }}{% endfor %}", "", "");
  RenderOptions options;
  ASSERT_TRUE(compiled->render(std::vector<TemplateMessage>{}, options).ok());
  options.limits.steps = 100;
  EXPECT_FALSE(compiled->render(std::vector<TemplateMessage>{}, options).ok());
  options = {};
  options.limits.range = 49;
  EXPECT_FALSE(compiled->render(std::vector<TemplateMessage>{}, options).ok());
  options = {};
  options.limits.output_bytes = 20;
  EXPECT_FALSE(compiled->render(std::vector<TemplateMessage>{}, options).ok());
}

TEST(TemplateLimits, LeaveRoomForLongConversations) {
  std::vector<TemplateMessage> messages;
  for (int i = 0; i < 2000; ++i)
    messages.push_back({i % 2 ? "assistant" : "user", std::string(1000, 'x'), ""});
  const auto compiled = ChatTemplate::compile(
      "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content | trim + '<|im_end|>\n' }}{% "
      "endfor %}",
      "", "");
  const auto chat = compiled->render(messages);
  ASSERT_TRUE(chat.ok()) << chat.status().message();
  EXPECT_GT(chat->text.size(), 2000000u);
}

}  // namespace
}  // namespace tessera::tokenizer
