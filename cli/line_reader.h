// Reads lines from the terminal, with editing and history where libedit was there at build time.
#pragma once

#include <string>

namespace tessera::cli {

class LineReader {
 public:
  LineReader();
  // False at the end of input. Ctrl-C drops the line being typed and gives an empty one.
  bool read(const char* prompt, std::string* line);

 private:
  bool editing_ = false;
};

}  // namespace tessera::cli
