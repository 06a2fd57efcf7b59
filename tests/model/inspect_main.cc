// The subcommand `inspect` in a program of its own, so that its test needs no engine and no server.
#include "cli/inspect.h"

int main(int argc, char** argv) {
  CLI::App app("tessera with one subcommand", "tessera");
  app.require_subcommand(1);
  int code = 0;
  tessera::cli::add_inspect(app, &code);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  return code;
}
