#include "line_reader.h"

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>

#ifdef TESSERA_LIBEDIT
#include <editline/readline.h>
#endif

namespace tessera::cli {

LineReader::LineReader() {
#ifdef TESSERA_LIBEDIT
  editing_ = isatty(STDIN_FILENO) != 0;
  if (editing_) using_history();
#endif
}

bool LineReader::read(const char* prompt, std::string* line) {
  line->clear();
#ifdef TESSERA_LIBEDIT
  if (editing_) {
    errno = 0;
    char* text = readline(prompt);
    if (text == nullptr) {
      if (errno != EINTR) return false;
      std::fputc('\n', stderr);
      return true;
    }
    *line = text;
    std::free(text);
    if (!line->empty()) add_history(line->c_str());
    return true;
  }
#endif
  std::fputs(prompt, stderr);
  for (;;) {
    errno = 0;
    const int c = std::fgetc(stdin);
    if (c == EOF && errno == EINTR) {
      std::clearerr(stdin);
      line->clear();
      return true;
    }
    if (c == EOF) return !line->empty();
    if (c == '\n') return true;
    line->push_back(static_cast<char>(c));
  }
}

}  // namespace tessera::cli
