// The tessera command: parses flags and hands over to a subcommand.
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <exception>

#include "args.h"
#include "inspect.h"

int main(int argc, char** argv) {
  using namespace tessera;
  std::signal(SIGPIPE, SIG_IGN);  // a reader that goes away is an error of write(), not the end
  CLI::App app{"Tessera: attention, LLM serving and training, fast and small in memory", "tessera"};
  app.set_version_flag("--version", TESSERA_VERSION);
  app.require_subcommand(1);
  app.set_help_all_flag("--help-all", "help of every subcommand");
  int code = cli::kExitOk;
  cli::add_run(app, &code);
  cli::add_serve(app, &code);
  cli::add_bench(app, &code);
  cli::add_explain(app, &code);
  cli::add_inspect(app, &code);
  cli::add_tokenize(app, &code);
  try {
    std::vector<std::string> words = cli::expand_short_flags(argc, argv);
    std::reverse(words.begin(), words.end());  // the order CLI11 wants a vector in
    app.parse(words);
  } catch (const CLI::ParseError& error) {
    const bool asked = error.get_exit_code() == 0;  // --help, --version
    app.exit(error);
    return asked ? cli::kExitOk : cli::kExitBadInput;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "tessera: internal error: %s\n", error.what());
    return cli::kExitFailure;
  }
  return code;
}
